"""Distillation in the loop: its loss by NumPy, and a run that learns from another."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.records import report
from normjax.tasks import Classification, Distilled, dense_targets, distillation_loss
from normjax.train import loop
from normjax.train.experiment import build_experiment
from normjax.train.start import saved_state
from tests.train.tiny import tiny_config, toy_batch, untrained_run

PLAIN = "norm=layer_norm,mixer=softmax"


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(logits, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(logits / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


def test_loss_and_gradient():
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 2, (2, 3, 5))
    temperature = 2.5
    p = softmax(t / temperature)
    value, gradient = jax.value_and_grad(distillation_loss)(
        jnp.float32(z), jnp.float32(p), temperature
    )
    np.testing.assert_allclose(value, divergence(z, t, temperature), rtol=1e-5)
    expected = temperature * (softmax(z / temperature) - p) / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    zeros = distillation_loss(jnp.float32(z), jnp.eye(5)[:3])
    np.testing.assert_allclose(
        zeros, -np.log(softmax(z)[range(3), range(3)]).mean(), rtol=1e-5
    )


@pytest.mark.parametrize("largest", [0, 2])
def test_a_teacher_beside_the_labels(largest):
    """It sees what the student sees; its gradient is none of the student's."""
    own = Classification(num_classes=4, mean=(0.5,), std=(0.25,))
    weights = np.random.default_rng(1).normal(size=(4, 4))
    objective = Distilled(
        own, lambda x, known: x.reshape(8, -1) @ weights, 0.7, 2.0, largest
    )
    batch = toy_batch()
    (x, _), targets = objective.examples(batch, jax.random.key(0))
    pixels = (np.float64(batch["image"]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(x, pixels, atol=1e-6)
    logits = np.random.default_rng(2).normal(size=(8, 4))
    loss, scalars = objective.loss(jnp.float32(logits), targets)
    p = softmax(pixels.reshape(8, -1) @ weights / 2.0)
    if largest:
        order = np.argsort(-p, -1)[:, :largest]
        values = np.take_along_axis(p, order, -1)
        p = np.float64(dense_targets(jnp.float32(values), order, 4))
    q = softmax(logits / 2.0)
    part = 4.0 * (p * np.log(p / q)).sum(-1).mean()
    hard = -np.log(softmax(logits)[range(8), batch["label"]]).mean()
    np.testing.assert_allclose(scalars["distillation"], part, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.3 * hard + 0.7 * part, rtol=1e-4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return untrained_run(tiny_config(PLAIN), tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_learns_from_another_one(teacher, tmp_path):
    """Its first loss is by what the teacher answers; it goes on without a change."""
    config = tiny_config(
        PLAIN,
        seed=1,
        total_steps=2,
        distill__path=str(teacher),
        distill__weight=1.0,
        data__label_smoothing=0.0,
        recalibrate_batches=0,
    )
    loop.train(config, tmp_path)
    first = report.read_metrics(tmp_path)[0]
    np.testing.assert_allclose(first["loss"], first["distillation"], rtol=1e-6)
    experiment = build_experiment(config)
    batch = experiment.batch(0)
    mean, std = config.data.mean[0], config.data.std[0]
    images = (np.float32(batch["image"]) / 255 - mean) / std
    variables = saved_state(teacher).eval_variables()
    theirs = np.float64(experiment.model.apply(variables, images, train=False))
    ours = experiment.model.apply(
        experiment.create_state().variables(), images, train=False
    )
    expected = divergence(np.float64(ours), theirs, 1.0)
    np.testing.assert_allclose(first["distillation"], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "/nowhere/at/all"}, "holds no run"),
        ({"mean": (0.1,)}, r"sees its inputs with data.mean="),
        ({"task": "language_modeling"}, "a run of language_modeling"),
    ],
)
def test_refused(teacher, tmp_path, change, message):
    config = tiny_config(PLAIN, distill__path=change.get("path", str(teacher)))
    if "mean" in change:
        config.data.mean = change["mean"]
    if "task" in change:
        kept = json.loads((teacher / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**kept, **change}))
        config.distill.path = str(tmp_path)
    with pytest.raises(UserError, match=message):
        build_experiment(config).objective  # noqa: B018
