"""Whole runs on the embedded digits: resume, devices, failures, what is kept."""

import collections
import json
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.devices import mesh
from normjax.devices.chips import Chip
from normjax.evaluation.run import evaluate_run
from normjax.records import report
from normjax.records.checkpoint import Checkpoints
from normjax.tasks import ImageClassification
from normjax.train import loop, scoring
from normjax.train.config import keep_config, kept_config
from normjax.train.experiment import build_experiment
from normjax.train.nonfinite import NonFiniteLoss
from tests.events import events_in
from tests.records.damage_test import data_files, flip
from tests.train.tiny import progressive_config, tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")


def state_of(workdir, step=None):
    """A checkpoint's state as NumPy arrays."""
    experiment = build_experiment(kept_config(workdir))
    checkpoints = Checkpoints(workdir)
    try:
        state = checkpoints.restore(
            step or checkpoints.latest(), experiment.abstract_state()
        )
    finally:
        checkpoints.close()
    return jax.tree.map(np.asarray, state)


def steps_kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_each_metric_once(workdir, steps=6):
    """Every step of training stands in the file once, and every evaluation."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seen = collections.Counter(
        (record["step"], name) for record in map(json.loads, lines) for name in record
    )
    seen = {key: n for key, n in seen.items() if key[1] != "step"}
    assert set(seen.values()) == {1}
    assert [s for s, name in seen if name == "loss"] == list(range(1, steps + 1))


def signal_at(monkeypatch, step):
    """Send SIGTERM to this process when the metrics of `step` are recorded."""
    update = report.ProgressBar.update

    def update_and_signal(self, done, scalars):
        update(self, done, scalars)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report.ProgressBar, "update", update_and_signal)


CHIP = Chip("toy", "cpu", 1, 1e12, 1.0, 1.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, compiled_once, data_dir):
    """(workdir, scores) of a run of six steps."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_curves", report.plot_curves.__wrapped__)
        patch.setattr(loop, "chip_of", lambda kind: CHIP)
        return workdir, loop.train(progressive_config(), workdir)


def test_what_a_run_leaves(undisturbed):
    workdir, scores = undisturbed
    assert set(scores) == {"top1", "top5", "nll", "ece"}
    assert steps_kept(workdir) == [3, 6]
    assert (workdir / "curves.png").stat().st_size > 1000
    (events,) = workdir.glob("events.out.tfevents.*")
    shown = collections.Counter(
        (event.step, value.tag)
        for event in events_in(events.read_bytes())
        for value in event.summary.value
        if not value.HasField("simple_value")
    )
    seen = {"examples", "confusion", "probability", "lam"}
    seen |= {f"statistics/norm/batch_norm/{name}" for name in ("mean", "var")}
    assert {(step, tag) for step in (3, 6) for tag in seen} <= set(shown)
    assert set(shown.values()) == {1} and {step for step, _ in shown} == {3, 6}
    assert_each_metric_once(workdir)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6 and last["eval_top1"] == scores["top1"]
    assert json.loads((workdir / "config.json").read_text())["total_steps"] == 6
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    trained = [record for record in records if "loss" in record]
    assert all(0 <= record["input_wait"] <= 1 for record in trained)
    # FLOPs of an image on its device, over the peak: of two programs, one after the
    # other, for LayerNorm is gone at the end.
    flops = [r["mfu"] / r["images_per_second"] * CHIP.flops * 16 for r in trained]
    assert 1e5 < flops[-1] < flops[0] < 1e8
    np.testing.assert_allclose(flops, [flops[0]] * 5 + [flops[-1]])


@pytest.mark.parametrize(
    ("at", "stops_at", "changes"),
    [
        # While the checkpoint of step 3 is due.
        pytest.param(1, 3, {}, marks=pytest.mark.slow),
        (1, 3, {"eval_every": 100, "checkpoint__every": 100}),
        pytest.param(
            *(3, 4, {"eval_every": 100, "checkpoint__every": 2}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    undisturbed, tmp_path, monkeypatch, at, stops_at, changes
):
    config = progressive_config(**changes)
    with monkeypatch.context() as patch:
        signal_at(patch, at)
        assert loop.train(config, tmp_path) is None
    assert max(steps_kept(tmp_path)) == stops_at
    scores = loop.train(config, tmp_path)
    assert scores == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
    assert_each_metric_once(tmp_path)


@pytest.mark.slow
def test_a_signal_during_evaluation(undisturbed, tmp_path, monkeypatch):
    """The evaluation is finished, the checkpoint has its scores."""
    evaluate = scoring.Scoring.evaluate

    def evaluate_and_signal(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scoring, "evaluate", evaluate_and_signal)
        assert loop.train(progressive_config(), tmp_path) is None
    assert steps_kept(tmp_path) == [3]
    assert loop.train(progressive_config(), tmp_path) == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
    assert_each_metric_once(tmp_path)


def test_a_finished_run_only_evaluates(undisturbed):
    workdir, scores = undisturbed

    def contents():
        paths = [workdir / "config.json", workdir / "metrics.jsonl"]
        paths += (p for p in (workdir / "checkpoints").rglob("*") if p.is_file())
        return {path: path.read_bytes() for path in paths}

    before = contents()
    assert loop.train(progressive_config(), workdir) == scores
    assert contents() == before


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_steps_but_changes_nothing(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    for path in data_files(tmp_path, step=6):
        flip(path)
    assert loop.train(progressive_config(), tmp_path) == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
    assert_each_metric_once(tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "6", "6.damaged"}


@pytest.mark.slow
def test_metrics_past_the_checkpoint_are_dropped(undisturbed, tmp_path):
    """As after a crash between a log line and the checkpoint that follows."""
    keep_config(progressive_config(), tmp_path)
    lines = [json.dumps({"step": s, "loss": 0.0}) for s in (1, 2)] + ['{"step": 3, "l']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    loop.train(progressive_config(), tmp_path)
    assert_each_metric_once(tmp_path)


@pytest.fixture
def one_device(monkeypatch):
    """`mesh` sees the first device only."""
    first = jax.devices()[:1]
    monkeypatch.setattr(mesh.jax, "devices", lambda: first)


@pytest.mark.slow
def test_one_device_equals_four(undisturbed, tmp_path, one_device):
    scores = loop.train(progressive_config(), tmp_path)
    alone, together = (state_of(w, step=3) for w in (tmp_path, undisturbed[0]))
    assert build_experiment(progressive_config()).mesh.size == 1
    chex.assert_trees_all_close(alone.params, together.params, atol=2e-5)
    chex.assert_trees_all_close(alone.model_state, together.model_state, atol=2e-5)
    assert scores["nll"] == pytest.approx(undisturbed[1]["nll"], abs=1e-3)


def test_restore_on_another_number_of_devices(undisturbed, one_device):
    with_one = state_of(undisturbed[0])
    checkpoints = Checkpoints(undisturbed[0])
    experiment = build_experiment(kept_config(undisturbed[0]))
    restored = checkpoints.restore(6, experiment.abstract_state())
    checkpoints.close()
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(restored))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, restored), with_one)


def test_restored_on_four_equals_restored_on_one(undisturbed, monkeypatch):
    on_four = state_of(undisturbed[0])
    first = jax.devices()[:1]
    monkeypatch.setattr(mesh.jax, "devices", lambda: first)
    chex.assert_trees_all_equal(state_of(undisturbed[0]), on_four)


def test_restored_on_another_mesh(undisturbed):
    config = kept_config(undisturbed[0])
    config.mesh.update(fsdp=2, tensor=2)
    experiment = build_experiment(config)
    checkpoints = Checkpoints(undisturbed[0])
    restored = checkpoints.restore(6, experiment.abstract_state())
    checkpoints.close()
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, restored), state_of(undisturbed[0])
    )
    kernel = restored.params["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 8)}


def test_evaluated_where_the_mesh_does_not_fit(undisturbed, tmp_path):
    """Here are four devices; the run says that it had eight."""
    shutil.copytree(undisturbed[0] / "checkpoints", tmp_path / "checkpoints")
    keep_config(progressive_config(mesh__fsdp=8), tmp_path)
    scores = evaluate_run(tmp_path)["unfolded"]
    assert scores == pytest.approx(undisturbed[1], rel=1e-5)


@pytest.mark.slow
def test_recalibration(undisturbed, tmp_path):
    loop.train(progressive_config(recalibrate_batches=3), tmp_path)
    ours, plain = state_of(tmp_path), state_of(undisturbed[0])
    chex.assert_trees_all_equal(ours.params, plain.params)
    chex.assert_trees_all_equal_shapes(ours.model_state, plain.model_state)
    stem = [s.model_state["batch_stats"]["stem"]["norm_0"] for s in (ours, plain)]
    assert stem[0]["step"] == stem[1]["step"] == 6
    assert not np.allclose(*(s["batch_norm"]["mean"] for s in stem))
    assert_each_metric_once(tmp_path)


@pytest.mark.slow
def test_recalibration_without_batch_statistics_is_no_matter(tmp_path):
    config = tiny_config("norm=layer_norm", total_steps=1, recalibrate_batches=2)
    assert loop.train(config, tmp_path) is not None


@pytest.mark.slow
def test_the_average_is_evaluated_and_kept(tmp_path):
    config = progressive_config(total_steps=2, ema_decay=0.9, eval_every=1)
    config.microbatches = 2
    loop.train(config, tmp_path)
    state = state_of(tmp_path)
    chex.assert_trees_all_equal_shapes(state.ema, state.params)
    assert not np.allclose(state.ema["head"]["bias"], state.params["head"]["bias"])


@pytest.mark.slow
def test_a_checkpoint_that_is_due_after_a_bad_step_is_not_written(tmp_path):
    config = tiny_config("norm=none", total_steps=4, checkpoint__every=1)
    config.optim.update(lr=1e30, clip_norm=0.0, warmup_fraction=0.25, name="sgd")
    with pytest.raises(NonFiniteLoss, match="step 3"):
        loop.train(config, tmp_path)
    finite = [
        all(np.isfinite(x).all() for x in jax.tree.leaves(state_of(tmp_path, s).params))
        for s in steps_kept(tmp_path)
    ]
    assert finite and all(finite)


@pytest.mark.slow
def test_best_checkpoint_is_kept_over_a_resume(tmp_path, monkeypatch):
    """Top-1 by step is 0.2, 0.9, 0.3 and 0.1; the run stops once on the way."""
    scripted = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.1}

    def scores(self, state, *args, **kwargs):
        return {"top1": scripted[int(state.step)], "top5": 1.0, "nll": 0.0, "ece": 0.0}

    monkeypatch.setattr(scoring.Scoring, "evaluate", scores)
    config = progressive_config(total_steps=4, eval_every=1, checkpoint__every=1)
    config.checkpoint.keep_last = 1
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        assert loop.train(config, tmp_path) is None
    loop.train(config, tmp_path)
    assert steps_kept(tmp_path) == [2, 4]
    checkpoints = Checkpoints(tmp_path, rank=ImageClassification.rank)
    assert (checkpoints.best(), checkpoints.latest()) == (2, 4)
    checkpoints.close()


def test_evaluate_run(undisturbed, capsys):
    workdir, scores = undisturbed
    both = evaluate_run(workdir, fold=True)
    assert both["unfolded"] == pytest.approx(scores, rel=1e-5)
    assert both["folded"]["nll"] == pytest.approx(scores["nll"], rel=1e-4)
    assert "largest logit difference" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown split of 'digits': 'tset'"):
        evaluate_run(workdir, split="tset")
