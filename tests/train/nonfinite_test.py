"""Gradients that are not finite, by a batch that spoils them, under every policy."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.core.errors import UserError
from normjax.data import order
from normjax.records import report
from normjax.records.checkpoint import Checkpoints
from normjax.train import loop, step
from normjax.train.config import kept_config
from normjax.train.experiment import build_experiment
from normjax.train.nonfinite import NonFiniteLoss
from normjax.train.programs import jit_train_step
from normjax.train.step import make_gradients, make_train_step
from tests.train.loop_test import (
    assert_each_metric_once,
    signal_at,
    state_of,
    steps_kept,
)
from tests.train.step_test import parts
from tests.train.tiny import Linear, tiny_config, toy_batch, toy_state

pytestmark = pytest.mark.usefixtures("compiled_once")

BAD = 4  # number of the batch: the update from step 4 to 5


def mark(images):
    """A number for every row of bytes, in 32 bits."""
    rows = images.reshape(len(images), -1).astype(np.uint32)
    return (rows * np.arange(1, rows.shape[1] + 1, dtype=np.uint32)[None] ** 3).sum(-1)


@pytest.fixture
def one_bad_batch(monkeypatch):
    """One image in one batch is not a number, in whatever run."""
    marked = mark(build_experiment(tiny_config()).batch(BAD)["image"])[3]

    def spoiled(*args, **kwargs):
        gradients = make_gradients(*args, **kwargs)

        def poisoned(params, model_state, inputs, *rest):
            images, known = inputs
            bad = mark(jnp.round((images * 0.5 + 0.5) * 255)) == marked
            images = jnp.where(bad[:, None, None, None], jnp.nan, images)
            return gradients(params, model_state, (images, known), *rest)

        return poisoned

    monkeypatch.setattr(step, "make_gradients", spoiled)


def config_of(policy, limit=10, **changes):
    nonfinite = {"nonfinite__policy": policy, "nonfinite__limit": limit}
    return tiny_config(recalibrate_batches=0, **nonfinite, **changes)


def test_stop(tmp_path, one_bad_batch):
    with pytest.raises(NonFiniteLoss) as caught:
        loop.train(tiny_config(), tmp_path)
    message, folder = str(caught.value), tmp_path / "failures" / "step-5"
    examples = order.example_indices(0, BAD, 16, 1437)
    shown = " ".join(map(str, examples[:8]))
    assert "loss is nan at step 5 (batch 4 of seed 0: " in message
    assert f"0: examples {shown} and 8 more); first gradient that is not " in message
    assert "finite: blocks_0/" in message
    assert "first value of the state: params/blocks_0/" in message
    assert f"newest good checkpoint: 3; batch in {folder}" in message
    assert "\n" not in message and steps_kept(tmp_path) == [3]
    known = json.loads((folder / "failure.json").read_text())
    assert known["examples"] == examples.tolist()
    assert (known["step"], known["batch"], known["newest_checkpoint"]) == (5, BAD, 3)
    assert known["first_bad_gradient"].startswith("blocks_0/")

    # The documented way to repeat it: the step, on the batch that was kept.
    experiment = build_experiment(kept_config(tmp_path))
    with np.load(folder / "batch-0.npz", allow_pickle=False) as kept:
        batch = dict(kept)
    chex.assert_trees_all_equal(batch, experiment.batch(BAD))
    state = Checkpoints(tmp_path).restore(3, experiment.abstract_state())
    _, metrics = jit_train_step(experiment)(state, batch)
    assert np.isnan(metrics["loss"]) and np.isnan(metrics["grad_norm"])


@pytest.mark.slow
def test_the_same_command_fails_again_in_the_same_way(tmp_path, one_bad_batch):
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteLoss) as caught:
            loop.train(tiny_config(), tmp_path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("spoiled", ["loss", "grads", None])
def test_a_skipped_step_changes_nothing_but_its_number(spoiled):
    model, optimizer = Linear(), optax.adam(0.1)
    objective, recipe = parts(ema_decay=0.5, skip_nonfinite=True)
    gradients = make_gradients(model, objective, recipe)

    def poisoned(*args):
        params, state, *batch = args
        _, grads, metrics = gradients(params, {}, *batch)
        if spoiled == "loss":
            metrics["loss"] = metrics["loss"] + jnp.inf
        elif spoiled:
            grads["head"]["kernel"] = grads["head"]["kernel"].at[1, 2].set(jnp.nan)
        return jax.tree.map(lambda x: x + 1, state), grads, metrics

    schedule = optax.constant_schedule(0.1)
    train_step = make_train_step(
        model, objective, optimizer, schedule, recipe, poisoned
    )
    before = toy_state(model, optimizer, ema=True)
    before = before.replace(model_state={"batch_stats": {"moved": jnp.zeros(())}})
    after, metrics = jax.jit(train_step)(before, toy_batch())
    assert int(after.step) == 1
    assert float(metrics["skipped"]) == (spoiled is not None)
    assert float(metrics["bad_gradient"]) == (1 if spoiled == "grads" else -1)
    same = jax.tree.map(np.array_equal, before.replace(step=after.step), after)
    assert all(jax.tree.leaves(same)) == (spoiled is not None)


@pytest.mark.slow
def test_skip(tmp_path, one_bad_batch):
    """The run ends as if updates had been made by all batches but one."""
    loop.train(config_of("skip", log_every=100), tmp_path)
    records = {r["step"]: r for r in report.read_metrics(tmp_path) if "lr" in r}
    assert set(records) == {5, 6}  # the one that was left out, and the last
    assert records[5]["skipped"] == records[6]["skipped"] == 1
    assert "grad_norm" not in records[5] and np.isfinite(records[6]["grad_norm"])
    experiment = build_experiment(tiny_config())
    state, train_step = experiment.create_state(), jit_train_step(experiment)
    for number in (0, 1, 2, 3, 5):
        if number == 5:
            state = state.replace(step=jnp.asarray(5, jnp.int32))
        state, _ = train_step(state, experiment.batch(number))
    ours = state_of(tmp_path)
    chex.assert_trees_all_close(ours.params, state.params, atol=1e-6)
    chex.assert_trees_all_close(ours.model_state, state.model_state, atol=1e-6)


@pytest.mark.slow
def test_skips_are_limited_over_all_starts(tmp_path, one_bad_batch, monkeypatch):
    config = config_of("skip", limit=1, total_steps=9)
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        assert loop.train(config, tmp_path) is None
    assert loop.train(config, tmp_path)
    records = [r for r in report.read_metrics(tmp_path) if "skipped" in r]
    assert [r["skipped"] for r in records] == 4 * [0] + 5 * [1]
    with pytest.raises(NonFiniteLoss, match=r"config\.nonfinite\.limit is 0 \(skip\)"):
        loop.train(config_of("skip", limit=0), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 4], ids=["to the end", "stopped and resumed"])
def test_roll_back(tmp_path, one_bad_batch, monkeypatch, stop):
    """Back to step 3, on with batch 5."""
    config = config_of("roll_back", total_steps=9)
    if stop:
        with monkeypatch.context() as patch:
            rolled = loop.Run._roll_back

            def roll_back(self, failed):
                log = rolled(self, failed)
                signal_at(patch, stop)
                return log

            patch.setattr(loop.Run, "_roll_back", roll_back)
            assert loop.train(config, tmp_path) is None
        assert 3 < max(steps_kept(tmp_path)) < 9
    loop.train(config, tmp_path)
    assert_each_metric_once(tmp_path, steps=9)
    (note,) = (r for r in report.read_metrics(tmp_path) if "rolled_back_from" in r)
    assert note == {"step": 3, "rolled_back_from": 5, "batches_left_out": 2}
    experiment = build_experiment(tiny_config(total_steps=9))
    state, train_step = experiment.create_state(), jit_train_step(experiment)
    for number in (0, 1, 2, *range(5, 11)):
        state, _ = train_step(state, experiment.batch(number))
    ours = state_of(tmp_path)
    chex.assert_trees_all_close(ours.params, state.params, atol=1e-5)
    chex.assert_trees_all_close(ours.model_state, state.model_state, atol=1e-5)


@pytest.mark.slow
def test_roll_back_to_the_start_and_its_limit(tmp_path, one_bad_batch):
    changes = {"eval_every": 100, "checkpoint__every": 100}
    loop.train(config_of("roll_back", limit=1, **changes), tmp_path)
    (note,) = (r for r in report.read_metrics(tmp_path) if "rolled_back_from" in r)
    assert note == {"step": 0, "rolled_back_from": 5, "batches_left_out": 5}
    with pytest.raises(NonFiniteLoss, match=r"limit is 0 \(roll_back\)"):
        loop.train(config_of("roll_back", limit=0, **changes), tmp_path / "other")


def test_what_is_allowed():
    with pytest.raises(UserError, match=r"config\.nonfinite\.policy 'skp'; did you"):
        build_experiment(config_of("skp"))
    with pytest.raises(UserError, match=r"config\.nonfinite\.limit must be at least 0"):
        build_experiment(config_of("skip", limit=-1))
