"""Rules of training: what a run learns from besides examples and labels, by NumPy."""

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.core.errors import UserError
from normjax.distill import _write
from normjax.evaluation.run import evaluate_run
from normjax.norms import BatchNorm
from normjax.tasks import Classification
from normjax.train import loop
from normjax.train.adversarial import ConcurrentAdversarial
from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_train_step
from normjax.train.self_distill import with_rows
from normjax.train.start import saved_state
from tests.train.teacher_test import softmax
from tests.train.tiny import tiny_config, toy_batch, toy_state, untrained_run

BATCH_NORM = "norm=batch_norm,mixer=softmax"
QUIET = {"recalibrate_batches": 0, "data__label_smoothing": 0.0}


def test_the_last_of_two_rows_of_one_example_is_kept():
    table = with_rows(
        jnp.zeros((4, 2)), jnp.array([1, 3, 1]), jnp.arange(6.0).reshape(3, 2)
    )
    np.testing.assert_array_equal(table, [[0, 0], [4, 5], [0, 0], [2, 3]])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_targets_are_those_of_the_last_epoch():
    """48 images in batches of 16: from the fourth on, what was answered before."""
    config = tiny_config(
        "norm=layer_norm,mixer=softmax",
        self_distill__weight=0.8,
        data__train_split="train[:48]",
        total_steps=6,
        **QUIET,
    )
    experiment = build_experiment(config)
    step, state = jit_train_step(experiment), experiment.create_state()
    table, seen = np.zeros((48, 10)), np.zeros(48, bool)
    for number in range(6):
        batch = experiment.batch(number)
        mean, std = config.data.mean[0], config.data.std[0]
        images = (np.float32(batch["image"]) / 255 - mean) / std
        logits = experiment.model.apply(state.variables(), images, train=True)
        p, rows = softmax(np.float64(logits)), experiment.task.example_numbers(number)
        weight = 0.8 * (number // 3 + 1) / 2
        hard = np.eye(10)[batch["label"]]
        mixed = (1 - weight) * hard + weight * table[rows]
        targets = np.where(seen[rows, None], mixed, hard)
        expected = -(targets * np.log(p)).sum(-1).mean()
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
        table[rows], seen[rows] = p, True
        np.testing.assert_allclose(state.memory, table, atol=1e-5)
    assert seen.all()


class Normed(nn.Module):
    """A linear classifier of batch normalised pixels."""

    @nn.compact
    def __call__(self, images, train=False):
        x = BatchNorm(name="norm")(images.reshape(len(images), -1), train=train)
        return nn.Dense(4, name="head")(x)


def normed(x, norm):
    """(output, batch mean, gradient by x of sum(output * dy) as a function of dy)."""
    mean, var = x.mean(0), x.var(0)
    std = np.sqrt(var + 1e-5)
    hat = (x - mean) / std

    def backward(dy):
        d = dy * norm["scale"]
        return (d - d.mean(0) - hat * (d * hat).mean(0)) / std

    return hat * norm["scale"] + norm["bias"], mean, backward


@pytest.mark.parametrize("targeted", [False, True])
def test_an_update_of_clean_and_adversarial_examples(targeted):
    """By NumPy: attack through the second norms, by the parameters of before."""
    config = tiny_config(BATCH_NORM, adversarial__epsilon=0.2)
    config.adversarial.update(targeted=targeted, noise=1.0, step=0.15)
    own = Classification(num_classes=4, mean=(0.5,), std=(0.25,))
    rule = ConcurrentAdversarial(config, Toy(own))
    model, batch = Normed(), toy_batch()
    rng = np.random.default_rng(3)
    variables = rule.begin(dict(toy_state(model, optax.sgd(0.1)).variables()))
    variables = jax.tree.map(
        lambda x: jnp.float32(rng.normal(1, 0.3, x.shape)), variables
    )
    memory = jax.tree.map(
        lambda x: jnp.float32(rng.normal(1, 0.3, x.shape)), rule.memory(variables)
    )
    objective, key = rule.objective(own), jax.random.key(5)
    (x, known), targets = objective.examples(batch, key)
    attack = jax.tree.map(np.asarray, known["attack"])
    outputs, new = rule.model(model).apply(
        {**variables, "training": memory},
        x,
        train=True,
        **known,
        mutable=["batch_stats", "training"],
    )
    labels = np.eye(4)[batch["label"]]
    assert np.abs(attack["start"] - x).max() <= 0.2 + 1e-6
    assert attack["low"].min() == -2 and attack["high"].max() == 2
    hit = (attack["targets"] * labels).sum(-1)
    np.testing.assert_array_equal(hit, 0 if targeted else 1)

    flat = {"x": np.float64(x), "start": np.float64(attack["start"])}
    flat = {name: v.reshape(8, -1) for name, v in flat.items()}
    stale, params = (
        jax.tree.map(np.float64, tree)
        for tree in (memory["stale"], variables["params"])
    )
    y, _, backward = normed(flat["start"], stale["training"]["norm"])
    p = softmax(y @ stale["head"]["kernel"] + stale["head"]["bias"])
    gradient = backward((p - attack["targets"]) @ stale["head"]["kernel"].T / 8)
    sign = -1 if targeted else 1
    low, high = (np.clip(flat["x"] + e, -2, 2) for e in (-0.2, 0.2))
    made = np.clip(flat["start"] + sign * 0.15 * np.sign(gradient), low, high)
    losses = []
    for images, norm, given in (
        (flat["x"], params["norm"], outputs[0]),
        (made, params["training"]["norm"], outputs[1]),
    ):
        y, mean, _ = normed(images, norm)
        logits = y @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(given, logits, rtol=1e-3, atol=1e-3)
        losses.append(-np.log(softmax(logits))[np.arange(8), batch["label"]].mean())
    loss, scalars = objective.loss(outputs, targets)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-3)
    np.testing.assert_allclose(scalars["adversarial"], losses[1], rtol=1e-3)
    before = np.float64(memory["batch_stats"]["norm"]["mean"])
    moved = new["training"]["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(moved, 0.9 * before + 0.1 * mean, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(new["training"]["stale"], variables["params"])


class Toy(NamedTuple):
    """Of a task what the rule asks for."""

    objective: Classification

    def examples(self):
        return 8


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_with_adversarial_examples_is_evaluated_without(tmp_path, capfd):
    """It resumes, too; scales of the second norms are trained."""
    config = tiny_config(BATCH_NORM, adversarial__epsilon=0.1, **QUIET)
    loop.train(config, tmp_path)
    state = saved_state(tmp_path)
    second = state.params["training"]["blocks_0"]["norm1"]["scale"]
    assert np.ptp(second - state.params["blocks_0"]["norm1"]["scale"]) > 0
    assert "training" not in state.eval_variables()["params"]
    evaluate_run(tmp_path)
    assert loop.train(config, tmp_path) is not None


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_records_fit_their_images_and_no_others(tmp_path):
    plain = "norm=layer_norm,mixer=softmax"
    teacher = untrained_run(tiny_config(plain), tmp_path / "teacher")
    config = tiny_config(plain, seed=1, total_steps=2, **QUIET)
    _write(teacher, config, tmp_path / "records", 3)
    config.distill.records = str(tmp_path / "records")
    experiment = build_experiment(config)
    batch = experiment.batch(1)
    mean, std = config.data.mean[0], config.data.std[0]
    images = (np.float32(batch["image"]) / 255 - mean) / std
    variables = saved_state(teacher).eval_variables()
    p = softmax(np.float64(experiment.model.apply(variables, images, train=False)))
    order = np.argsort(-p, -1)[:, :3]
    np.testing.assert_array_equal(batch["classes"], order)
    largest = np.take_along_axis(p, order, -1)
    rest = (1 - largest.sum(-1, keepdims=True)) / 7
    expected = np.broadcast_to(rest, p.shape).copy()
    np.put_along_axis(expected, order, largest, -1)
    _, targets = experiment.objective.examples(batch, jax.random.key(0))
    np.testing.assert_allclose(targets, expected, atol=1e-3)
    loop.train(config, tmp_path / "run")
    config.self_distill.weight = 0.5
    with pytest.raises(UserError, match=r"distill\.records and config\.self_distill"):
        _write(teacher, config, tmp_path / "others", 3)
    config.self_distill.weight, config.distill.records = 0.0, str(tmp_path / "records")
    config.data.augment.crop_padding = 2
    with pytest.raises(UserError, match="other images than those"):
        build_experiment(config).batch(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"self_distill__weight": 0.5, "adversarial__epsilon": 0.1},
            "do not go together",
        ),
        ({"self_distill__weight": 0.5, "microbatches": 2}, "microbatches=2"),
        ({"self_distill__weight": 0.5, "data__mixup_alpha": 0.2}, "mixup_alpha"),
        (
            {"adversarial__epsilon": 0.1, "model__norm__name": "layer_norm"},
            "batch_norm",
        ),
        ({"distill__records": "/nowhere"}, "/nowhere: no records"),
    ],
)
def test_refused(changes, message):
    experiment = build_experiment(tiny_config(BATCH_NORM, **changes))
    with pytest.raises(UserError, match=message):
        (experiment.abstract_state(), experiment.objective)
