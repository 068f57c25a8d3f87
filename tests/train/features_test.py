"""Attention transfer: its loss by NumPy, layers of models, runs that learn by it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError
from normjax.records import report
from normjax.tasks import (
    Classification,
    FeaturesDistilled,
    attention_map,
    attention_transfer_loss,
)
from normjax.train import loop
from normjax.train.experiment import build_experiment
from normjax.train.observed import Observed, layers_of
from normjax.train.start import saved_state
from tests.train.teacher_test import divergence, softmax
from tests.train.tiny import tiny_config, toy_batch, untrained_run

PLAIN = "norm=layer_norm,mixer=softmax"
PATCHES = {"name": "patch", "patch_size": 4}


def looks(features):
    """Where float64 features look: unit vectors [B, N]."""
    q = (features**2).mean(-1).reshape(len(features), -1)
    return q / np.sqrt((q**2).sum(-1, keepdims=True))


def distance(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return sum(((looks(f) - looks(g)) ** 2).mean() for f, g in pairs)


def test_loss_and_gradient():
    """Of maps and tokens whose widths differ; the gradient by central differences."""
    rng = np.random.default_rng(0)
    ours = [rng.normal(size=(3, 2, 2, 5)), rng.normal(size=(3, 6, 4))]
    theirs = [rng.normal(size=(3, 4, 7)), rng.normal(size=(3, 6, 1))]
    maps = [attention_map(jnp.float32(x)) for x in theirs]
    given = [jnp.float32(x) for x in ours]
    value, gradient = jax.value_and_grad(attention_transfer_loss)(given, maps)
    np.testing.assert_allclose(value, distance(ours, theirs), rtol=1e-5)
    for layer, at in ((0, (1, 0, 1, 2)), (1, (2, 5, 3))):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [x.copy() for x in ours]
            moved[layer][at] += step
            ends.append(distance(moved, theirs))
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient[layer][at], expected, rtol=1e-3, atol=1e-6)


def test_where_there_is_nothing_to_learn():
    """Features that are alike, or zeros, have a gradient, 0."""
    same = jnp.float32(np.random.default_rng(1).normal(size=(2, 4, 3)))
    zeros = jnp.zeros((2, 4, 3))
    maps = [attention_map(same), attention_map(zeros)]
    np.testing.assert_array_equal(maps[1], 0)
    gradient = jax.grad(attention_transfer_loss)([same, zeros], maps)
    np.testing.assert_allclose(np.concatenate(gradient), 0, atol=1e-7)


def test_a_teacher_of_logits_and_layers():
    rng = np.random.default_rng(2)
    own = Classification(num_classes=4, mean=(0.5,), std=(0.25,))
    shapes = (8, 4, 3), (2, 8, 4), (8, 4, 2)
    theirs, logits, ours = (rng.normal(size=shape) for shape in shapes)

    def teacher(x, known):
        return jnp.float32(logits[0]), (jnp.float32(theirs),)

    objective = FeaturesDistilled(own, teacher, 0.7, 2.0, feature_weight=5.0)
    batch = toy_batch()
    _, targets = objective.examples(batch, jax.random.key(0))
    outputs = jnp.float32(logits[1]), (jnp.float32(ours),)
    loss, scalars = objective.loss(outputs, targets)
    part, soft = distance([ours], [theirs]), divergence(logits[1], logits[0], 2.0)
    hard = -np.log(softmax(logits[1])[range(8), batch["label"]]).mean()
    np.testing.assert_allclose(scalars["features"], part, rtol=1e-4)
    np.testing.assert_allclose(scalars["distillation"], soft, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.3 * hard + 0.7 * soft + 5 * part, rtol=1e-4)


class Tower(nn.Module):
    """Two layers of positions, of which the second is called twice, and logits."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3, name="late")(x)
        again = nn.Dense(3, name="early")
        x = nn.Dense(3, name="a_last")(again(again(x)))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def test_layers_in_the_order_in_which_they_are_computed():
    model, x = Tower(), jnp.float32(np.random.default_rng(3).normal(size=(2, 2, 3, 3)))
    layers = layers_of(model, x[:1], {})
    assert [(layer.name, layer.positions) for layer in layers] == [
        ("late", 6),
        ("a_last", 6),
    ]
    variables = model.init(jax.random.key(0), x)
    seen = Observed(model, (layers[0],))
    (logits, (late,)), new = seen.apply(variables, x, train=True, mutable=["losses"])
    dense = jax.tree.map(np.float64, variables["params"]["late"])
    expected = np.float64(x) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(late, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, model.apply(variables, x), rtol=1e-5)
    assert "intermediates" not in new


@pytest.mark.parametrize("how", ["remat", "scan_layers"])
def test_layers_that_are_recomputed_or_scanned(how):
    """Have the names, the order and the values of those that are not."""
    arguments = {"num_classes": 3, "dim": 8, "depth": 2, "num_heads": 2}
    spec = {"name": "vit", "stem": PATCHES, "norm": "layer_norm", "mixer": "softmax"}
    model = models.build({**spec, how: True}, **arguments)
    x = jnp.float32(np.random.default_rng(4).normal(size=(2, 8, 8, 1)))
    variables = model.init(jax.random.key(0), x, train=False)
    plain, unrolled = models.build(spec, **arguments), variables
    if how == "scan_layers":
        _, unrolled = model.unrolled(variables)
    named = layers_of(plain, x[:1], {})
    found = layers_of(model, x[:1], {})
    assert [layer.name for layer in found] == [layer.name for layer in named]
    ours = Observed(model, tuple(found)), variables
    theirs = Observed(plain, tuple(named)), unrolled
    outputs = [
        m.apply(v, x, train=True, mutable=["losses"])[0] for m, v in (ours, theirs)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *outputs
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    config = tiny_config(PLAIN, model__depth=3, model__dim=24, seed=3)
    return untrained_run(config, tmp_path_factory.mktemp("teacher") / "run")


def taught(teacher, **changes):
    fields = {
        "features": "blocks_[01]",
        "teacher_features": "blocks_[12]",
        "feature_weight": 10.0,
        "weight": 0.0,
    }
    given = {f"distill__{name}": value for name, value in fields.items()}
    return tiny_config(
        PLAIN,
        model__depth=2,
        seed=1,
        total_steps=2,
        distill__path=str(teacher),
        recalibrate_batches=0,
        **{**given, **changes},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(
    "how", [{}, {"microbatches": 2}, {"parallelism": "pmap"}, {"model__remat": True}]
)
def test_a_run_that_looks_where_its_teacher_does(teacher, tmp_path, how):
    config = taught(teacher, **how)
    loop.train(config, tmp_path)
    first = report.read_metrics(tmp_path)[0]
    experiment = build_experiment(config)
    mean, std = config.data.mean[0], config.data.std[0]
    images = (np.float32(experiment.batch(0)["image"]) / 255 - mean) / std
    student = build_experiment(tiny_config(PLAIN, model__depth=2, seed=1))
    known = build_experiment(tiny_config(PLAIN, model__depth=3, model__dim=24))

    def blocks(model, variables, numbers):
        _, new = model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=True
        )
        inside = new["intermediates"]
        return [np.float64(inside[f"blocks_{i}"]["__call__"][0]) for i in numbers]

    ours = blocks(student.model, student.create_state().variables(), (0, 1))
    theirs = blocks(known.model, saved_state(teacher).eval_variables(), (1, 2))
    np.testing.assert_allclose(first["features"], distance(ours, theirs), rtol=1e-3)
    assert first["loss"] > 10 * first["features"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "block_0"}, r"finds no layer of this run .*near: blocks_0"),
        ({"teacher_features": "blocks"}, r"of config.distill.path .*near: blocks_"),
        ({"features": "blocks_["}, "unterminated"),
        ({"features": "blocks_0"}, r"1 of this run \(blocks_0\) and 2 of the teacher"),
        ({"teacher_features": "", "features": "head"}, "finds no layer of this run"),
        ({"path": ""}, "needs config.distill.path"),
    ],
)
def test_refused(teacher, changes, message):
    config = taught(teacher)
    config.distill.update(changes)
    with pytest.raises(UserError, match=message):
        build_experiment(config).objective  # noqa: B018


def test_other_positions_and_ways_are_refused(teacher):
    config = taught(teacher)
    config.model.stem.strides = (2, 2)
    with pytest.raises(UserError, match=r"blocks_0 has 4 positions .*blocks_1.* 16;"):
        build_experiment(config).objective  # noqa: B018
    config = taught(teacher, batch_growth__test="norm", batch_growth__largest=64)
    with pytest.raises(UserError, match=r"not go with config\.batch_growth\.test"):
        build_experiment(config).objective  # noqa: B018
