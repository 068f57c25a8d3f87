"""Residual networks: published sizes, a block by hand, folding, every norm of maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations, models, norms
from normjax.core.errors import UserError
from normjax.models.conv_unit import ConvUnit
from normjax.models.resnet import ResidualBlock
from normjax.norms import NORMS
from tests.models import convolutions
from tests.models.convolutions import abstract, count

TINY = {
    "num_classes": 3,
    "depths": (1, 1),
    "widths": (4, 6),
    "stem": {"name": "conv_unit", "stride": 1},
}


def tiny(**changes):
    return models.build("resnet", **{**TINY, **changes})


@pytest.mark.parametrize(
    ("preset", "side", "classes", "parameters"),
    [
        ("resnet18", 224, 1000, 11_689_512),
        ("resnet34", 224, 1000, 21_797_672),
        ("resnet50", 224, 1000, 25_557_032),
        ("resnet20", 32, 10, 269_722),
    ],
)
def test_parameter_counts(preset, side, classes, parameters):
    model = models.build(preset, num_classes=classes)
    assert count(abstract(model, side)["params"]) == parameters


def test_size_of_the_maps():
    """224 pixels become 7, as published: the head reads the mean of 7 x 7."""
    block = ResidualBlock(norms.build("none"), activations.build("relu"), 4, stride=2)
    images = jnp.zeros((1, 7, 7, 4))
    block = block.clone(shortcut="pad")
    y, _ = jax.eval_shape(
        lambda: block.init_with_output(jax.random.key(0), images, False)
    )
    assert y.shape == (1, 4, 4, 4)
    parts = {"norm": block.norm, "activation": block.activation}
    stem = models.ConvPoolStem(dim=4, **parts)
    shape = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    y, _ = jax.eval_shape(
        lambda x: stem.init_with_output(jax.random.key(0), x, train=False), shape
    )
    assert y.shape == (1, 56, 56, 4)


@pytest.mark.parametrize("shortcut", ["identity", "project", "pad"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_a_block_by_hand(kind, shortcut, x64):
    features = {"basic": 3, "bottleneck": 12}[kind]
    stride = 1 if shortcut == "identity" else 2
    channels = features if shortcut == "identity" else 2
    module = ResidualBlock(
        norm=norms.build("batch_norm"),
        activation=activations.build("relu"),
        width=3,
        block=kind,
        stride=stride,
        shortcut=shortcut,
    )
    variables, x, y = convolutions.block_case(module, channels)
    branch, last = x, 1 if kind == "basic" else 2
    for i in range(last + 1):
        strided = i == (0 if kind == "basic" else 1)
        step = stride if strided else 1
        branch = convolutions.unit(variables, f"unit_{i}", branch, step)
        branch = branch if i == last else np.maximum(branch, 0)
    if shortcut == "project":
        x = convolutions.unit(variables, "shortcut", x, stride)
    if shortcut == "pad":
        x = np.concatenate(
            [x[:, ::2, ::2], np.zeros((2, 3, 3, features - channels))], -1
        )
    np.testing.assert_allclose(y, np.maximum(x + branch, 0), rtol=1e-12, atol=1e-12)


FOLDED = [
    {"norm": "batch_norm"},
    {"norm": {"name": "prepbn", "decay_steps": 2}, "shortcut": "pad"},
    {"norm": "repbn", "block": "bottleneck", "stem": "conv_pool"},
]


@pytest.mark.parametrize("changes", FOLDED)
def test_folding_changes_no_logit_in_float64(changes, x64):
    assert convolutions.folding_error(tiny(**changes), 8, np.float64) < 1e-9


def test_folding_changes_no_logit_in_float32():
    assert convolutions.folding_error(tiny(**FOLDED[2]), 8, np.float32) < 1e-4


def build_with(norm, **changes):
    """A ResNet with `norm`, given the arguments that it needs."""
    needed = {"decay_steps": 3, "num_tasks": 2, "num_groups": 2}
    fields = NORMS[norm].make.__dataclass_fields__
    spec = {"name": norm, **{k: v for k, v in needed.items() if k in fields}}
    return tiny(norm=spec, **changes)


def rows():
    """Every norm of maps; fast: one of each kind. Gradients have tests of their own."""
    kinds = ("layer_norm", "batch_norm", "prepbn", "evonorm_b0", "power_norm", "none")
    for entry in NORMS:
        if "grid" in entry.tags:
            marks = () if entry.name in kinds else pytest.mark.slow
            yield pytest.param(entry.name, marks=marks)


@pytest.mark.parametrize("norm", list(rows()))
def test_every_norm_of_maps_trains(norm):
    model = build_with(norm, depths=(1,), widths=(4,))
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(4, 4, 4, 1)), jnp.float32
    )

    @jax.jit
    def step(key):
        variables = model.init(key, images, train=False)
        state = {k: v for k, v in variables.items() if k != "params"}

        def loss(params):
            logits, _ = model.apply(
                {**state, "params": params}, images, train=True, mutable=list(state)
            )
            return jnp.sum(jnp.square(logits)), logits

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, logits = step(jax.random.key(1))
    assert (logits.shape, logits.dtype) == ((4, 3), jnp.float32)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    for layer in ("stem/unit", "blocks_0_0/unit_0", "blocks_0_0/unit_1"):
        parts = layer.split("/")
        assert np.any(gradients[parts[0]][parts[1]]["conv"]["kernel"]), layer


@pytest.mark.parametrize(
    "norm", [e.name for e in NORMS if e.name.startswith("evonorm")]
)
def test_no_activation_behind_a_norm_that_includes_one(norm):
    factory = norms.build({"name": norm, "bias_init": -1.0})
    if norm == "evonorm_s0":
        factory = norms.build(factory, num_groups=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 2)), jnp.float32)
    results = []
    for activation in (None, activations.build("relu")):
        module = ConvUnit(4, factory, activation)
        results.append(module.init_with_output(jax.random.key(0), x, train=False)[0])
    assert (results[0] < 0).any()
    np.testing.assert_array_equal(*results)


def test_bfloat16_remat_and_stochastic_depth():
    model = tiny(dtype=jnp.bfloat16, remat=True, drop_path_rate=0.5)
    variables = abstract(model, 8)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def apply(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        arguments = {"train": True, "mutable": ["batch_stats"], "rngs": rngs}
        return model.apply(variables, images, **arguments)[0]

    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert jax.eval_shape(apply, variables, images).dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "basik"}, "unknown block 'basik'; did you mean 'basic'"),
        ({"shortcut": "pads"}, "unknown shortcut 'pads'; did you mean 'pad'"),
        ({"widths": (4,)}, "depths (1, 1) and widths (4,) are not of one length"),
        ({"mixer": "sla"}, "a mixer needs attention, the blocks of each stage"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as caught:
        tiny(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
