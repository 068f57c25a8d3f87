"""Blocks as data: branches of any layers, a carry, factors on branches, patterns."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models, norms
from normjax.core.errors import UserError
from normjax.models.block import Block, Branch, feeding, stream_of
from normjax.models.placement import BranchPlacement

PRE = BranchPlacement(pre=True)
NORM = norms.build("rms_norm", use_scale=False, epsilon=0.0)
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


class Scale(nn.Module):
    """Times a number of the context, or 1."""

    @nn.compact
    def __call__(self, x, factor=1.0):
        return x * factor


class Counting(nn.Module):
    """Adds what is carried; carries on the sum of what it read."""

    @nn.compact
    def __call__(self, x, *, carry):
        return x + carry["sum"], {"sum": carry["sum"] + jnp.sum(x)}


class Matrix(nn.Module):
    """A linear layer that says what it reads and writes."""

    reads, writes = ("dense",), "dense"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="dense")(x)


def root_mean_square(x):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True))


def test_branches_run_in_order_and_read_the_context():
    takes = (("factor", "temperature"),)
    branches = (
        Branch("a", "norm_a", NORM, Scale, PRE, takes),
        Branch("b", "norm_b", NORM, Scale, BranchPlacement(post=True)),
    )
    y = Block(branches).apply({}, X, False, {"temperature": 3.0, "mask": None})
    expected = X.astype(np.float64)
    expected = expected + 3 * root_mean_square(expected)
    expected = root_mean_square(2 * expected)
    chex.assert_trees_all_close(y, expected.astype(np.float32), rtol=1e-6)


def test_a_carry_goes_through_the_branches_that_ask_for_it():
    branches = (
        Branch("a", "norm_a", NORM, Counting, BranchPlacement(), carries=True),
        Branch("b", "norm_b", NORM, Scale, BranchPlacement()),
        Branch("c", "norm_c", NORM, Counting, BranchPlacement(), carries=True),
    )
    y, carry = Block(branches).apply({}, X, False, carry={"sum": jnp.ones(())})
    x, total = X.astype(np.float64), 1.0
    x, total = 2 * x + total, total + x.sum()
    x = 2 * x
    x, total = 2 * x + total, total + x.sum()
    chex.assert_trees_all_close(y, x.astype(np.float32), rtol=1e-5)
    chex.assert_trees_all_close(carry["sum"], np.float32(total), rtol=1e-5)


def test_a_layer_scale_is_a_factor_on_the_branch():
    branch = Branch("a", "norm_a", NORM, Matrix, PRE, layer_scale=0.5)
    block = Block((branch,))
    variables = block.init(jax.random.key(0), X, False)
    scale = np.asarray([0.5, -1.0, 2.0, 0.0], np.float32)
    variables["params"]["a_layer_scale"]["scale"] = jnp.asarray(scale)
    dense = variables["params"]["a"]["dense"]
    y = block.apply(variables, X, False)
    branch_of = root_mean_square(X) @ np.asarray(dense["kernel"])
    chex.assert_trees_all_close(y, X + scale * branch_of, rtol=1e-5, atol=1e-6)

    def loss(params):
        return jnp.sum(block.apply({"params": params}, X, False))

    grads = jax.grad(loss)(variables["params"])["a_layer_scale"]["scale"]
    chex.assert_trees_all_close(grads, np.sum(branch_of, (0, 1)), rtol=1e-4, atol=1e-5)
    assert stream_of((), {}, {"b": block}, "").obstacle
    assert not stream_of(
        (), {}, {"b": Block((branch._replace(layer_scale=None),))}, ""
    ).obstacle


def built(model, images=None, **arguments):
    model = models.build(model, num_classes=3, **arguments)
    x = jnp.zeros((1, 32, 32, 3) if images is None else images)
    variables = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), x)
    return model, variables["params"]


def test_mixers_alternate_over_the_layers():
    pattern = ("softmax", {"name": "sla", "kernel_size": 3})
    _, params = built("vit", dim=8, depth=3, num_heads=2, mixer=pattern)
    kinds = ["dwc_kernel" in params[f"blocks_{i}"]["mixer"] for i in range(3)]
    assert kinds == [False, True, False]


def test_mixers_alternate_within_a_stage():
    _, params = built(
        "pyramid",
        depths=(3, 2),
        dims=(8, 8),
        num_heads=(2, 2),
        mixer=(("sla", "pooling"), "sla"),
    )
    found = {k: "mixer" in v for k, v in params.items() if k.startswith("blocks")}
    assert found == {
        "blocks_0_0": True,
        "blocks_0_1": False,
        "blocks_0_2": True,
        "blocks_1_0": True,
        "blocks_1_1": True,
    }


def test_a_decoder_alternates_and_the_converted_one_too():
    arguments = {"vocab_size": 7, "dim": 8, "depth": 3, "num_heads": 2}
    arguments |= {"norm": "layer_norm", "mixer": ("softmax", "lightning"), "mlp": "mlp"}
    model = models.build("decoder", **arguments)
    tokens = jnp.arange(6).reshape(1, 6)
    variables = model.init(jax.random.key(0), tokens)
    gated = ["gate_up" in variables["params"][f"blocks_{i}"]["mixer"] for i in range(3)]
    assert gated == [False, True, False]
    converted = fusion.convert_pre_norm(model, variables, "rms_norm")
    y = converted.model.apply(converted.variables, tokens)
    chex.assert_trees_all_close(y, model.apply(variables, tokens), atol=1e-5)


def test_a_mixer_of_a_pattern_is_checked():
    with pytest.raises(UserError, match="softmaks"):
        models.build("vit", num_classes=3, mixer=("softmax", "softmaks"))
    with pytest.raises(UserError, match="'sla' does not accept causal"):
        models.build("decoder", vocab_size=3, mixer=("gated_linear", "sla"))


def test_shared_layers_are_those_of_one_block():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = Matrix(name="shared")
            kind = nn.remat(Block, static_argnums=(2,))
            for i in range(2):
                x = kind((feeding(NORM, layer, PRE),), name=f"b_{i}")(x, False)
            return x

    variables = Twice().init(jax.random.key(0), X)
    assert set(variables["params"]) == {"shared"}
