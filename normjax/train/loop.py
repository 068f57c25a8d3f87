"""Train a model: the loop around the jitted step."""

import collections
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from normjax.core.collections import BATCH_STATS
from normjax.train import report
from normjax.train.checkpoint import Checkpoints
from normjax.train.config import keep_config
from normjax.train.evaluate import evaluate, make_eval_step
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.mesh import replicated, split_batch
from normjax.train.recalibrate import recalibrate
from normjax.train.signals import Interrupt
from normjax.train.step import make_train_step

MAX_IN_FLIGHT = 2  # steps that the host may run ahead of the device


class NonFiniteLoss(RuntimeError):
    """The loss is not a finite number any more; the last checkpoint is untouched."""


def train(config: Any, workdir: Path) -> dict[str, float] | None:
    """Train what `config` describes, or go on where the run in `workdir` stopped.

    Writes checkpoints, `config.json`, `metrics.jsonl`, TensorBoard events and
    `curves.png` into `workdir` and prints a table at the end.

    Returns:
      the metrics of the test split, or None if a signal stopped the run (a checkpoint
      of that moment is saved).

    Raises:
      UserError: a wrong config, data set or workdir; nothing is overwritten.
      NonFiniteLoss: training diverged.
    """
    experiment = build_experiment(config)
    keep_config(config, workdir)
    checkpoints = Checkpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )
    try:
        return Run(experiment, workdir, checkpoints).run()
    finally:
        checkpoints.close()


class Run:
    """One process's part of a run; `bench` drives its parts by hand."""

    def __init__(self, experiment: Experiment, workdir: Path, checkpoints: Checkpoints):
        self.experiment, self.workdir = experiment, workdir
        self.config, self.checkpoints = experiment.config, checkpoints
        everywhere = replicated(experiment.mesh)
        eval_step = make_eval_step(experiment.model.apply, experiment.recipe)
        self.eval_step = jax.jit(eval_step, out_shardings=everywhere)
        newest = checkpoints.latest()
        if newest is None:
            self.state = experiment.create_state()
        else:
            like = experiment.abstract_state()
            self.state = checkpoints.restore(newest, like, everywhere)
        self.step = int(self.state.step)
        self.last: dict[str, float] = {}
        self.seconds, self.steps_timed = 0.0, 0

    def run(self) -> dict[str, float] | None:
        """Train to the end and evaluate, or None after a signal."""
        step_fn, flops = self.compile()
        self._print_summary(flops)
        log = report.MetricLog(self.workdir, self.step)
        try:
            # A signal after the last step is noted too: what is left takes seconds.
            with Interrupt() as interrupt:
                self.advance(step_fn, log, interrupt, self.config.total_steps)
                if self.step == self.config.total_steps:
                    return self._finish(log)
                self.checkpoints.save(self.state)
                report.console.print(f"stopped at step {self.step}; checkpoint saved")
                return None
        finally:
            log.close()

    def compile(self):
        """The step for this run's shapes; nothing is compiled again in the loop."""
        e, everywhere = self.experiment, replicated(self.experiment.mesh)
        step = make_train_step(e.model, e.optimizer, e.schedule, e.recipe)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
        rows, shard = self.config.batch_size, split_batch(e.mesh)
        batch = {
            "image": jax.ShapeDtypeStruct(
                (rows, *e.image_shape), "uint8", sharding=shard
            ),
            "label": jax.ShapeDtypeStruct((rows,), "int32", sharding=shard),
        }
        compiled = jitted.lower(self.state, batch).compile()
        costs = compiled.cost_analysis() or {}
        return compiled, costs.get("flops", 0.0)

    def advance(self, step_fn, log, interrupt: Interrupt, until: int) -> None:
        """Train up to step `until`, or until a signal."""
        config, total = self.config, self.config.total_steps
        pending: collections.deque[tuple[int, Any]] = collections.deque()
        batches = self.experiment.train_batches(self.step)
        bar = report.ProgressBar(total, self.step)
        begin = time.monotonic()
        with bar:
            for batch in _until(batches, until - self.step):
                self.state, metrics = step_fn(self.state, batch)
                self.step += 1
                self.steps_timed += 1
                pending.append((self.step, metrics))
                if len(pending) > MAX_IN_FLIGHT:
                    self._record(*pending.popleft(), log, bar, begin)
                every = self.step < total and not interrupt.received
                due = self.step % config.eval_every == 0
                save = self.step % config.checkpoint.every == 0
                if every and (due or save):
                    while pending:
                        self._record(*pending.popleft(), log, bar, begin)
                    self.seconds += time.monotonic() - begin
                    scores = self._evaluate(log) if due else None
                    if save:
                        self.checkpoints.save(self.state, scores)
                    begin = time.monotonic()
                if interrupt.received:
                    break
            while pending:
                self._record(*pending.popleft(), log, bar, begin)
        self.seconds += time.monotonic() - begin
        batches.close()

    def _record(self, step: int, metrics, log, bar, begin) -> None:
        """Take the metrics of a step that is done by now."""
        values = {name: float(v) for name, v in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):  # a bad gradient spoils what is saved next
            if not math.isfinite(values[name]):
                raise NonFiniteLoss(self._describe_failure(step, name, values[name]))
        self.last = values
        if step % self.config.log_every == 0 or step == self.config.total_steps:
            spent = self.seconds + time.monotonic() - begin
            rate = self.steps_timed * self.config.batch_size / max(spent, 1e-9)
            log.write(step, {**values, "images_per_second": rate})
            shown = {k: values[k] for k in ("loss", "lr", "lam") if k in values}
            bar.update(step, {**shown, "images/s": rate})

    def _describe_failure(self, step: int, name: str, value: float) -> str:
        first = next(
            (
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, x in jax.tree_util.tree_leaves_with_path(self.state.params)
                if not jax.numpy.isfinite(x).all()
            ),
            "none yet",
        )
        return (
            f"{name} is {value} at step {step} (batch {step - 1} of seed "
            f"{self.config.seed}); first parameter that is not finite: {first}; "
            f"newest good checkpoint: {self.checkpoints.latest()}"
        )

    def _evaluate(self, log, prefix: str = "eval_") -> dict[str, float]:
        batches = self.experiment.eval_batches(self.config.data.eval_split)
        scores = evaluate(self.eval_step, self.state.eval_variables(), batches)
        if log is not None:
            log.write(self.step, {prefix + name: v for name, v in scores.items()})
        return scores

    def _finish(self, log) -> dict[str, float]:
        before = None
        fresh = self.checkpoints.latest() != self.step
        has_stats = BATCH_STATS in self.state.model_state
        if fresh and has_stats and self.config.recalibrate_batches:
            before = self._evaluate(log, "before_recalibration_")
            self._recalibrate()
        scores = self._evaluate(log if fresh else None)
        if fresh:
            self.checkpoints.save(self.state, scores)
        log.close()
        self._print_result(before, scores)
        if self.last.get("lam", 0.0) > 0:
            report.console.print(
                f"warning: training ended with lam = {self.last['lam']:.3g} > 0: the "
                "norm that was to be replaced still took part"
            )
        return scores

    def _recalibrate(self) -> None:
        count = self.config.recalibrate_batches
        batches = _until(self.experiment.train_batches(self.step), count)
        stats = recalibrate(
            self.experiment.model,
            self.state.eval_variables(),
            batches,
            self.experiment.recipe,
        )
        model_state = {**self.state.model_state, BATCH_STATS: stats}
        self.state = self.state.replace(model_state=model_state)

    def _print_summary(self, flops: float) -> None:
        config, model = self.config, self.experiment.model
        parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        images = len(self.experiment.source(config.data.train_split))
        groups = "each microbatch" if config.microbatches > 1 else "the global batch"
        rows = [
            ("model", f"{config.model.name} ({type(model).__name__})"),
            ("norm, mixer", _component_names(model)),
            ("parameters", parameters),
            ("FLOPs a step", flops),
            ("devices", f"{jax.device_count()} x {jax.devices()[0].device_kind}"),
            ("data", f"{config.data.name}, {images:,} images"),
            ("batch statistics", f"of {groups}"),
            ("steps", f"{self.step:,} of {config.total_steps:,} done"),
        ]
        report.table("run", ("", ""), rows)

    def _print_result(self, before, scores) -> None:
        rows = []
        if before is not None:
            rows.append(("before recalibration", *_score_cells(before)))
        rows.append((self.config.data.eval_split, *_score_cells(scores)))
        columns = ("split", "top-1", "top-5", "NLL", "ECE")
        report.table(str(self.workdir), columns, rows)
        plot = report.plot_curves(self.workdir)
        if self.steps_timed:
            speed = self.steps_timed * self.config.batch_size / self.seconds
            report.console.print(
                f"{self.steps_timed} steps in {self.seconds:.1f} s, "
                f"{speed:,.0f} images/s; curves in {plot}"
            )


def _score_cells(scores: dict[str, float]) -> tuple[str, str, float, float]:
    top1, top5 = report.percent(scores["top1"]), report.percent(scores["top5"])
    return top1, top5, scores["nll"], scores["ece"]


def _component_names(model: Any) -> str:
    """Classes of its norm and mixers, as far as it has them."""
    parts = jax.tree.leaves([getattr(model, k, None) for k in ("norm", "mixer")])
    return ", ".join(dict.fromkeys(part.func.__name__ for part in parts))


def _until(batches: Iterator, count: int) -> Iterator:
    """The first `count` batches; closes the source."""
    try:
        for _ in range(count):
            yield next(batches)
    finally:
        batches.close()
