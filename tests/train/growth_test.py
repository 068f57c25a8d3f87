"""Batches that grow in the loop: the tests by NumPy, the data, and runs that go on."""

import chex
import jax
import ml_collections
import numpy as np
import optax
import pytest

from normjax import data
from normjax.config.check import check_config
from normjax.core.errors import UserError
from normjax.optim import BATCH_TESTS, Spread
from normjax.records import report
from normjax.train import loop
from normjax.train.experiment import build_experiment
from normjax.train.growth import Numbers, check_growth, make_measure, parts_for
from normjax.train.nonfinite import Guard
from normjax.train.programs import jit_train_step
from normjax.train.state import Taken
from tests.train.loop_test import signal_at, state_of, steps_kept
from tests.train.step_test import by_hand, parts
from tests.train.tiny import Linear, tiny_config, toy_batch, toy_state

TOLERANCE = 0.4


def by_numpy(gradients, test):
    """(required, variance) of [samples, coordinates], by the paper's equations."""
    mean, rows = gradients.mean(0), len(gradients)
    square = mean @ mean
    if test == "norm":
        variance = gradients.var(0, ddof=1).sum()
        return variance / (TOLERANCE**2 * square), variance
    products = gradients @ mean
    inner = products.var(ddof=1)
    found = [(inner / (TOLERANCE**2 * square**2), inner)]
    if test == "augmented":
        rest = gradients - np.outer(products, mean) / square
        across = (rest**2).sum() / (rows - 1)  # their mean is 0
        found.append((across / (TOLERANCE**2 * square), across))
    return max(found)


def test_the_config_knows_all_of_them():
    for name in (*BATCH_TESTS, ""):
        check_config(tiny_config(batch_growth__test=name))
    with pytest.raises(UserError, match=r"config\.batch_growth\.test"):
        check_config(tiny_config(batch_growth__test=" "))


@pytest.mark.parametrize("test", BATCH_TESTS)
@pytest.mark.parametrize("coordinates", [2, 40])
def test_scalars_of_gradients_are_enough(test, coordinates):
    gradients = np.random.default_rng(0).normal(0.3, 1, (7, coordinates))
    mean = gradients.mean(0)
    distances = ((gradients - mean) ** 2).sum(1)
    spread = Spread(mean @ mean, distances, gradients @ mean)
    found = BATCH_TESTS[test](spread, TOLERANCE)
    expected = *by_numpy(gradients, test), mean @ mean
    np.testing.assert_allclose(list(found), expected, rtol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("trained", [".*", "kernel"])
def test_measured_on_a_linear_classifier(microbatches, trained):
    model = Linear()
    state, batch = toy_state(model, optax.sgd(0.1)), toy_batch()
    config = ml_collections.ConfigDict(
        {
            "batch_growth": {"test": "augmented", "tolerance": TOLERANCE},
            "optim": {"trainable": trained},
        }
    )
    measure = make_measure(model, parts()[0], microbatches, config, ())
    found = jax.jit(measure)(state, batch)
    rows = []
    for i in range(8):
        _, _, slope = by_hand(state.params, {k: v[i : i + 1] for k, v in batch.items()})
        names = [n for n in ("bias", "kernel") if trained in (".*", n)]
        rows.append(np.concatenate([slope[name].ravel() for name in names]))
    gradients = np.stack(rows)
    expected = *by_numpy(gradients, "augmented"), (gradients.mean(0) ** 2).sum()
    np.testing.assert_allclose(list(found), expected, rtol=1e-4)


def test_powers_of_two_within_the_largest():
    sizes = [parts_for(r, rows=16, largest=100) for r in (1, 16, 16.1, 33, 64.5, 1e30)]
    assert sizes == [1, 1, 2, 4, 4, 4]
    assert parts_for(float("inf"), rows=16, largest=100) == 4
    assert parts_for(float("nan"), rows=16, largest=100) == 1


def growing(arg="norm=layer_norm,mixer=softmax", **changes):
    rule = {"test": "norm", "every": 2, "largest": 64, "tolerance": 0.5}
    rule |= {"rate": "square_root"}
    return tiny_config(
        arg,
        recalibrate_batches=0,
        **{f"batch_growth__{name}": value for name, value in rule.items()},
        **changes,
    )


def test_a_batch_is_those_that_follow():
    experiment = build_experiment(growing())
    grown = experiment.grown(2)
    assert grown.abstract_batch()["image"].shape[0] == 32
    assert grown.abstract_batch(train=False)["image"].shape[0] == 16
    assert grown.recipe.microbatches == 2
    positions = np.arange(3 * 16, 5 * 16)  # all in the first epoch
    source = data.open_images("digits", "train")
    numbers = data.permutation(experiment.config.seed, 0, len(source))[positions]
    labels = source.gather(numbers)[1]
    np.testing.assert_array_equal(grown.batch(3)["label"], labels)
    np.testing.assert_allclose(grown.schedule(4), 2**0.5 * experiment.schedule(4))


def test_batches_that_are_left_out_are_counted_as_they_were_taken(tmp_path):
    """Two updates of one batch, then of four; the fourth fails: back to the first."""
    experiment = build_experiment(growing(nonfinite__policy="roll_back"))
    state = experiment.create_state()
    guard = Guard(experiment, tmp_path, Numbers(state), 0)
    guard.numbers.grow(2, parts=4)
    assert [guard.batch(step) for step in range(5)] == [0, 1, 2, 6, 10]
    again = state.replace(step=1, taken=Taken(np.int32(1), np.int32(1)))
    found = guard.roll_back(4, 1, Numbers(again))
    assert found == {"rolled_back_from": 4, "batches_left_out": 9}
    assert [guard.batch(step) for step in (1, 2)] == [10, 11]
    assert Guard(experiment, tmp_path, Numbers(again), 1).batch(2) == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_growth__largest": 31}, r"largest=31 leaves no room.*= 32"),
        ({"batch_growth__test": "f"}, r"batch_growth.test.*'f'.*norm"),
        ({"model__norm": {"name": "region_norm"}}, "rows of a batch meet there"),
    ],
)
def test_refused(changes, message):
    config = growing()
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    with pytest.raises(UserError, match=message):
        check_growth(build_experiment(config))


def rows_and_rates(workdir):
    records = [r for r in report.read_metrics(workdir) if "loss" in r]
    return [r["batch_size"] for r in records], [r["lr"] for r in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, compiled_folder):
    del compiled_folder
    workdir = tmp_path_factory.mktemp("growth") / "run"
    return workdir, loop.train(growing(), workdir)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_it_grows(undisturbed):
    workdir, _ = undisturbed
    rows, rates = rows_and_rates(workdir)
    assert rows == sorted(rows) and rows[:2] == [16, 16] and rows[-1] == 64
    experiment = build_experiment(growing())
    expected = [
        (size / 16) ** 0.5 * experiment.schedule(i) for i, size in enumerate(rows)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    tests = {
        r["step"]: r["required_batch_size"]
        for r in report.read_metrics(workdir)
        if "required_batch_size" in r
    }
    for step, required in tests.items():
        before, after = rows[step - 1], rows[step]
        wanted = parts_for(required, rows=16, largest=64) * 16
        assert after == max(before, wanted)
    grown = [step for step in range(2, 6) if rows[step] > rows[step - 1]]
    assert grown and set(grown) <= set(tests)
    state = state_of(workdir)
    assert int(state.taken.before) == sum(rows) / 16
    assert int(state.taken.parts) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("at", [2, 4])
def test_it_goes_on_bit_for_bit(undisturbed, tmp_path, monkeypatch, at):
    """Stopped where its batches have just grown, and behind it."""
    with monkeypatch.context() as patch:
        signal_at(patch, at)
        assert loop.train(growing(), tmp_path) is None
    assert max(steps_kept(tmp_path)) < 6
    assert loop.train(growing(), tmp_path) == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
    assert rows_and_rates(tmp_path) == rows_and_rates(undisturbed[0])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_statistics_of_a_grown_batch_are_of_its_parts():
    """As if each part were a batch of its own, with parameters that do not move."""
    still = {"optim__lr": 0.0, "optim__weight_decay": 0.0}
    experiment = build_experiment(growing("norm=batch_norm,mixer=softmax", **still))
    grown = experiment.grown(2)
    rows = grown.batch(0)
    whole, _ = jit_train_step(grown)(experiment.create_state(), rows)
    step, state = jit_train_step(experiment), experiment.create_state()
    for part in range(2):  # row i of a batch goes to part i % 2
        own = {name: value[part::2] for name, value in rows.items()}
        state, _ = step(state, own)
    assert int(whole.taken.before) == int(state.taken.before) - 1 == 1
    chex.assert_trees_all_close(whole.model_state, state.model_state, rtol=1e-5)
    moved = jax.tree.leaves(whole.model_state["batch_stats"])
    assert all(np.abs(x).max() > 0 for x in moved)
