"""Train a model: the loop around the jitted step."""

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from normjax.analysis.layers import LayerLog, plot_layers
from normjax.core.compiler import compiled_code_in
from normjax.core.console import console
from normjax.core.paths import workdir_path
from normjax.devices.chips import chip_of
from normjax.devices.processes import is_first, on_first
from normjax.devices.signals import Interrupt, Stopped
from normjax.devices.votes import Votes
from normjax.records import report
from normjax.records.checkpoint import Checkpoints, RunFailed
from normjax.records.datasets import keep_data, keep_description
from normjax.records.wandb_run import WandbRun, check_wandb
from normjax.records.workdir import check_room, held
from normjax.train import extend
from normjax.train.alike import check_alike
from normjax.train.begin import beginning, begun_state, tell
from normjax.train.config import keep_config, plain
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.growth import CURVE, REQUIRED, ROWS, Numbers
from normjax.train.nonfinite import Failure, Guard
from normjax.train.pace import Pace
from normjax.train.phases import Phase, TrainStep, trace_phase
from normjax.train.profile import Profile
from normjax.train.programs import jit_diagnose, trace_measure
from normjax.train.scoring import Scoring, first
from normjax.train.sized import Sized
from normjax.train.state import with_parts
from normjax.train.summary import print_summary

MAX_IN_FLIGHT = 2  # steps that the host may run ahead of the device
INPUT_WAIT = "input_wait"
"""Metric: the share of the time since the last record that was waited for data."""


def train(config: Any, workdir: Path) -> dict[str, float] | None:
    """Train what `config` describes, or go on where the run in `workdir` stopped.

    Writes checkpoints, `config.json`, `metrics.jsonl`, TensorBoard events and
    `curves.png` into `workdir` and prints a table at the end.

    Returns:
      the metrics of `data.eval_split`, and those of `data.test_split`, if that is
      given, with "test_" before their names; or None if a signal stopped the run (a
      checkpoint of that moment is saved).

    Raises:
      UserError: a wrong config, data set or workdir; nothing is overwritten.
      NonFiniteLoss: training diverged.
      RunFailed: the workdir cannot be written any more.
    """
    workdir = workdir_path(workdir)
    check_wandb(config.get("wandb", ""))
    experiment = build_experiment(config)
    check_alike(config, experiment.task.digests())
    phase = trace_phase(experiment)  # a wrong config must not touch the workdir
    if config.batch_growth.test:
        trace_measure(experiment)
    with held(workdir):
        try:
            return _train(experiment, phase, workdir)
        except OSError as error:
            raise RunFailed(f"workdir {workdir}: {error}") from error


def _train(
    experiment: Experiment, phase: Phase, workdir: Path
) -> dict[str, float] | None:
    kept = experiment.config.checkpoint
    state = experiment.abstract_state()
    on_first(lambda: check_room(workdir, state, kept.keep_last + kept.keep_best))
    on_first(lambda: _compare(experiment, workdir))
    checkpoints = Checkpoints(
        workdir,
        keep_last=kept.keep_last,
        keep_best=kept.keep_best,
        rank=experiment.task.ranking(),
    )
    try:
        # What is wrong with the weights that it begins with must leave no run behind.
        begin = beginning(experiment) if checkpoints.latest() is None else None
        on_first(lambda: _keep(experiment, workdir))
        if begin:
            tell(begin, workdir)
            checkpoints.save(begun_state(experiment, begin))
        with _compiled_code(experiment, workdir):
            return Run(experiment, workdir, checkpoints, phase).run()
    finally:
        checkpoints.close()


def _compare(experiment: Experiment, workdir: Path) -> None:
    """Compare the config with that of the workdir."""
    keep_config(experiment.config, workdir, write=False)


def _keep(experiment: Experiment, workdir: Path) -> None:
    """Compare the data with what the workdir holds, and keep what the run is."""
    keep_data(experiment.task, workdir)
    keep_config(experiment.config, workdir)
    keep_description(experiment.task.description(), workdir)


class Run:
    """One process's part of a run; `bench` drives its parts by hand.

    All processes compute; the first alone writes what people read.

    Args:
      phase: of the training step, any.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpoints: Checkpoints,
        phase: Phase,
    ):
        self.experiment, self.workdir = experiment, workdir
        self.config, self.checkpoints = experiment.config, checkpoints
        self.restore()
        self.guard = Guard(experiment, workdir, Numbers(self.state), self.step)
        self.votes, self.interrupt = Votes(experiment.mesh), Interrupt()
        self.scoring = Scoring(experiment, workdir, checkpoints, self._watch)
        self.looks: LayerLog | None = None
        if self.config.diagnostics_every:
            self.diagnose = jit_diagnose(experiment)
            if is_first():
                self.looks = LayerLog(workdir, self.step)
        steps, folder = self.config.profile_steps, workdir / "profile"
        self.profile = Profile(folder, steps, self.step, self.config.total_steps)
        self.last: dict[str, float] = {}
        self.chip = chip_of(experiment.mesh.devices.flat[0].device_kind)
        self.sized = Sized(experiment, self.guard.numbers.parts(self.step), phase)
        self.pace = Pace(self.sized.units)

    def restore(self) -> None:
        """Go on from the newest sound checkpoint, or begin."""
        like = self.experiment.abstract_state()
        self.state = self.checkpoints.restore_newest(like, set_aside=True)
        if self.state is None:
            self.state = self.experiment.create_state()
        self.step = int(self.state.step)

    @property
    def train_step(self) -> TrainStep:
        """Of batches of the size that they have."""
        return self.sized.train_step

    def _resize(self) -> None:
        """Get ready for batches of the size that the next update takes."""
        parts = self.guard.numbers.parts(self.step)
        if parts != self.sized.parts:
            self.train_step.close()
            self.sized = Sized(self.experiment, parts)
            self.pace.units = self.sized.units

    def run(self) -> dict[str, float] | None:
        """Train to the end and evaluate, or None after a signal."""
        self.train_step.begin(self.state, self.config.total_steps - self.step)
        print_summary(self.experiment, self.state, self.train_step.flops)
        log = self._open_log()
        extend.tell(self.experiment, self.workdir, self.state, log)
        self.scoring.remember(self.step)
        try:
            with self.interrupt as interrupt:
                until = self.config.total_steps
                with contextlib.suppress(Stopped):
                    self.scoring.catch_up(self.state, log)
                    while failed := self._advance_or_fail(log, interrupt, until):
                        log.close()
                        log = self._roll_back(failed)
                    if self.step == until or self.scoring.stalled:
                        return self._finish(log)
                if self.checkpoints.latest() != self.step:
                    self.checkpoints.save(self.state)
                self.checkpoints.wait()  # signals that come meanwhile change nothing
                console.print(f"stopped at step {self.step}; checkpoint saved")
                return None
        finally:
            log.close()
            self.train_step.close()
            self.profile.close()
            if self.looks:
                self.looks.close()

    def _open_log(self) -> Any:
        if not is_first():
            return report.NoLog()
        also, project = None, self.config.get("wandb", "")
        if project:
            also = WandbRun(project, self.workdir, plain(self.config))
        return report.MetricLog(self.workdir, self.step, also)

    def _advance_or_fail(self, log, interrupt, until: int) -> int:
        """Train as `advance` does; the step that the run is to roll back from, or 0."""
        try:
            self.advance(log, interrupt, until)
        except Failure as failure:
            return failure.step
        return 0

    def _roll_back(self, failed: int) -> Any:
        """Go on from the last checkpoint with the batches after the one that failed.

        Returns:
          the log, from there on.
        """
        self.restore()
        self.scoring.remember(self.step)
        if self.looks:
            self.looks.close()
            self.looks = LayerLog(self.workdir, self.step)
        log = self._open_log()
        numbers = Numbers(self.state)
        log.write(self.step, self.guard.roll_back(failed, self.step, numbers))
        self._resize()
        return log

    def advance(self, log, interrupt: Interrupt, until: int) -> None:
        """Train up to step `until`, or until a signal."""
        while self._advance(log, interrupt, until):
            self._resize()

    def _advance(self, log, interrupt: Interrupt, until: int) -> bool:
        """The same; True as soon as the next batch is larger."""
        config, total, votes = self.config, self.config.total_steps, self.votes
        pending: collections.deque[tuple[int, Any, float]] = collections.deque()
        if self.scoring.stalled:
            return False
        grows = stops = False
        self.train_step.begin(self.state, until - self.step)
        batches: Any = self.sized.experiment.train_batches(self.guard.batch(self.step))
        bar = report.ProgressBar(total, self.step)
        self.pace.start(self.step)

        def drain() -> None:
            while pending:
                self._record(*pending.popleft(), log, bar)

        with bar, contextlib.closing(batches):
            for batch in self.pace.watch(first(batches, until - self.step)):
                self.checkpoints.check()
                batch = votes.cast(batch, interrupt)
                self.profile.at(self.step, self.state)
                test = self.sized.test(self.state, batch, self.step)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = self.train_step(self.state, batch)
                self.step += 1
                pending.append((self.step, metrics, self.train_step.flops))
                look = config.diagnostics_every
                if look and self.step % look == 0:
                    self._look(batch)
                if len(pending) > MAX_IN_FLIGHT:
                    self._record(*pending.popleft(), log, bar)
                if test is not None:
                    drain()
                    grows = self._grow(test, log)
                every = self.step < total and not votes.stop(interrupt)
                due = self.step % config.eval_every == 0
                save = self.step % config.checkpoint.every == 0
                if every and (due or save):
                    drain()
                    self.pace.stop()
                    scores = self.scoring.evaluate(self.state, log) if due else None
                    if save and not self.scoring.stalled:
                        self.checkpoints.save(self.state, scores)
                    self.pace.go_on()
                stops = votes.stop(interrupt) or self.scoring.stalled
                if stops or grows:
                    break
            self.profile.at(self.step, self.state)
            drain()
        self.pace.stop()
        return grows and not stops and self.step < until

    def _grow(self, test: Any, log) -> bool:
        """Let the next batches be as large as a test requires; True if they grow."""
        required = float(test.required)
        log.write(self.step, {REQUIRED: required})
        parts = self.sized.wanted(required)
        if parts == self.sized.parts:
            return False
        self.guard.numbers.grow(self.step, parts)
        self.state = with_parts(self.state, parts)
        return True

    def _record(self, step: int, metrics, flops: float, log, bar) -> None:
        """Take the metrics of a step that is done by now."""
        values = {name: float(v) for name, v in jax.device_get(metrics).items()}
        values = self.votes.read(values)
        if self.config.batch_growth.test:
            parts = self.guard.numbers.parts(step - 1)
            values[ROWS] = float(parts * self.config.batch_size)
        newest = self.checkpoints.latest()
        values, notable = self.guard.check(step, values, self.state, newest)
        self.last = values
        last = step == self.config.total_steps
        if step % self.config.log_every == 0 or last or notable:
            (rate, waited), unit = self.pace.window(step), self.experiment.task.unit
            speed = {f"{unit}_per_second": rate, INPUT_WAIT: waited}
            mfu = self._utilization(rate, flops)
            speed |= {} if mfu is None else {"mfu": mfu}
            log.write(step, {**values, **speed})
            shown = {k: values[k] for k in ("loss", "lr", "lam") if k in values}
            bar.update(step, {**shown, f"{unit}/s": rate})

    def _utilization(self, rate: float, flops: float) -> float | None:
        """FLOPs over those that the devices could have done meanwhile; None of devices
        that `devices.chips` does not know.

        Args:
          rate: units a second.  flops: of a step and device.
        """
        steps = rate / self.pace.units
        return flops * steps / self.chip.flops if self.chip else None

    def _look(self, batch) -> None:
        """Record what happens inside the layers on `batch`; waits for it."""
        layers = self.diagnose(self.state, batch)
        if self.looks:
            self.looks.write(self.step, layers)

    def _watch(self, batches: Iterator) -> Iterator:
        """`batches`, until a signal raises Stopped."""
        return self.votes.watch(batches, self.interrupt)

    def _finish(self, log) -> dict[str, float]:
        data = self.config.data
        batch = self.guard.batch(self.step)
        if self.step < self.config.total_steps:
            console.print(
                f"ended at step {self.step}: no better score in "
                f"{self.config.patience} evaluations (config.patience)"
            )
        rows = self.scoring.finish(self.state, log, batch)
        results = dict(rows[data.eval_split])
        if data.test_split:
            test = rows[data.test_split]
            results |= {f"test_{name}": value for name, value in test.items()}
        stood_in = len(self.experiment.task.stood_in)
        if stood_in:
            log.write(self.step, {"undecodable": stood_in})
            console.print(
                f"warning: {stood_in} training images could not be decoded; others "
                "stood in for them"
            )
        log.close()
        self._print_result(rows)
        if self.last.get("lam", 0.0) > 0:
            console.print(
                f"warning: training ended with lam = {self.last['lam']:.3g} > 0: the "
                "norm that was to be replaced still took part"
            )
        return results

    def _print_result(self, rows: dict[str, dict[str, float]]) -> None:
        task = self.experiment.task
        report.score_table(str(self.workdir), "split", task.columns, rows)
        if not is_first():
            return
        grows = (CURVE,) if self.config.batch_growth.test else ()
        plot = report.plot_curves(self.workdir, (*task.curves, *grows))
        if self.looks:
            self.looks.close()
            console.print(f"layers in {plot_layers(self.workdir)}")
        if self.pace.steps:
            rate = self.pace.speed()
            speed = f"{rate:,.0f} {task.unit}/s"
            used = self._utilization(rate, self.train_step.flops)
            if self.chip:
                speed += f", {used:.1%} of the peak of {self.chip.name}"
            console.print(
                f"{self.pace.steps} steps in {self.pace.seconds:.1f} s, {speed}; "
                f"curves in {plot}"
            )


def _compiled_code(experiment: Experiment, workdir: Path) -> Any:
    """Keeps what is compiled, so that the next start of the run need not compile.

    Not on CPU: machines that share a folder may differ in their instructions.
    """
    if experiment.mesh.devices.flat[0].platform == "cpu":
        return contextlib.nullcontext()
    return compiled_code_in(workdir / "compiled")
