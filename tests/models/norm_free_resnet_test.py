"""Residual networks without norms: a block by hand, the size of the signal, folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations, fusion, models, reparam
from normjax.core.errors import UserError
from normjax.models.norm_free_resnet import NormFreeBlock
from tests.models import convolutions
from tests.models.convolutions import abstract, random_variables

RULES = ({"pattern": "conv|shortcut", "name": "scaled_weight_standardization"},)


def build(**changes):
    sizes = {"num_classes": 3, "depths": (2, 2), "widths": (4, 6)}
    return models.build("norm_free_resnet", **{**sizes, **changes})


def relu(x):
    return 1.7139588594436646 * np.maximum(x, 0)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("project", [False, True])
def test_a_block_by_hand(kind, project, x64):
    features = {"basic": 3, "bottleneck": 12}[kind]
    module = NormFreeBlock(
        activation=activations.build("scaled_relu"),
        width=3,
        block=kind,
        stride=2 if project else 1,
        project=project,
        beta=0.7,
    )
    variables, x, y = convolutions.block_case(module, 2 if project else features)
    params = variables["params"]

    def conv(name, x, stride):
        layer = params[name]
        return convolutions.conv(x, layer["kernel"], stride) + layer["bias"]

    branch = entry = 0.7 * relu(x)
    for i in range({"basic": 2, "bottleneck": 3}[kind]):
        branch = relu(branch) if i else branch
        strided = project and i == {"basic": 0, "bottleneck": 1}[kind]
        branch = conv(f"conv_{i}", branch, 2 if strided else 1)
    shortcut = conv("shortcut", entry, 2) if project else x
    expected = shortcut + 0.2 * params["gain"] * branch
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_expected_sizes_of_the_signal():
    """1 at the start, then 1 + alpha^2 each, from 1 again behind a first block."""
    blocks = build(depths=(3, 2), alpha=0.5).blocks()
    variances = [1 / block["beta"] ** 2 for block in blocks.values()]
    np.testing.assert_allclose(variances, [1, 1.25, 1.5, 1.75, 1.25])
    assert [block["project"] for block in blocks.values()] == [1, 0, 0, 1, 0]
    assert [block["stride"] for block in blocks.values()] == [1, 1, 1, 2, 1]


@pytest.mark.slow
def test_the_signal_has_the_expected_size():
    """With standardized weights and gains of 1, whatever the raw weights."""
    host = build(depths=(6, 6), widths=(64, 64))
    model = reparam.reparameterize(host, RULES)
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32
    )
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params = jax.tree.map(
        lambda x: jnp.ones_like(x) if x.ndim == 0 else 3.0 * x if x.ndim > 1 else x,
        variables["params"],
    )
    _, seen = model.apply(
        {"params": params},
        images,
        capture_intermediates=lambda m, _: isinstance(m, NormFreeBlock),
    )
    for name, arguments in list(host.blocks().items())[1:]:
        before = list(host.blocks())[list(host.blocks()).index(name) - 1]
        (x,) = seen["intermediates"][before]["__call__"]
        size = float(jnp.mean(jnp.std(x, (0, 1, 2))))
        # Zero padding makes the borders smaller.
        assert 0.6 < size * arguments["beta"] < 1.15, (name, size)


def test_at_the_start_blocks_are_their_shortcuts():
    block = NormFreeBlock(activations.build("scaled_relu"), width=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
    y, _ = block.init_with_output(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(y, x)


def test_folding_merges_the_standardized_weights(x64):
    model = reparam.reparameterize(build(), RULES)
    variables = random_variables(abstract(model, 8), np.float64)
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    folded, merged = fusion.fold(model, variables)
    assert isinstance(folded, models.NormFreeResNet)
    before, after = model.apply(variables, images), folded.apply(merged, images)
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "basik"}, "unknown block 'basik'; did you mean 'basic'"),
        ({"widths": (4,)}, "are not of one length"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


@pytest.mark.parametrize("model", ["norm_free_resnet", "nfnet_l0"])
@pytest.mark.parametrize("norm", ["prepbn", {"name": "layer_norm"}])
def test_a_norm_is_refused(model, norm):
    with pytest.raises(UserError, match="network without norms has no place for norm"):
        models.build(model, norm=norm, num_classes=3)
