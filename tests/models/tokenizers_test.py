"""Tokens of images, one token of all, and halves that meet; oracle: NumPy by loops."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations, mixers, models, norms
from normjax.core.errors import UserError
from tests.mixers.grid.mixing import gelu, local, rms_norm
from tests.mixers.oracles import dense

RNG = np.random.default_rng(4)


def patches(x, size, stride, padding, border=0.0):
    """[B, H', W', k, k, C]."""
    around = (0, 0), (padding, padding), (padding, padding), (0, 0)
    x = np.pad(x, around, constant_values=border)
    rows, columns = (range(0, n - size + 1, stride) for n in x.shape[1:3])
    lines = [[x[:, i : i + size, j : j + size] for j in columns] for i in rows]
    return np.stack([np.stack(line, 1) for line in lines], 1)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (4, 3, 0)])
def test_patches_have_the_channel_slowest(size, stride, padding):
    x = RNG.normal(size=(2, 7, 6, 3)).astype("float32")
    expected = np.moveaxis(patches(x, size, stride, padding), -1, 3)
    expected = expected.reshape(*expected.shape[:3], -1)
    np.testing.assert_array_equal(mixers.unfolded(x, size, stride, padding), expected)
    with pytest.raises(UserError, match="7x6 with a border of 0 has no patch of 8x8"):
        mixers.unfolded(x, 8, 1)


def test_convolutions_with_maxima_at_odd_sizes(x64):
    x = RNG.normal(size=(2, 9, 7, 3))
    stem = models.ConvTokenizer(
        dim=5, norm=None, activation=None, layers=2, kernel_size=5, hidden=4
    )
    shapes = jax.eval_shape(lambda: stem.init(jax.random.key(0), x, train=False))
    params = jax.tree.map(lambda t: RNG.normal(size=t.shape), shapes["params"])
    y = x
    for i in range(2):
        kernel = params[f"conv_{i}"]["kernel"]
        y = np.maximum(np.einsum("bhwijc,ijcd->bhwd", patches(y, 5, 1, 2), kernel), 0)
        y = patches(y, 3, 2, 1, -np.inf).max((3, 4))
    actual = jax.jit(functools.partial(stem.apply, train=False))({"params": params}, x)
    np.testing.assert_allclose(actual, y, rtol=1e-10)


def test_pooled_tokens_are_those_that_are_valid(x64):
    x, mask = RNG.normal(size=(2, 3, 2, 4)), RNG.random((2, 3, 2)) < 0.6
    pool = models.SequencePooling()
    params = {"scores": {"kernel": RNG.normal(size=(4, 1)), "bias": RNG.normal(size=1)}}
    y = pool.apply({"params": params}, jnp.where(mask[..., None], x, np.nan), mask=mask)
    for one, valid, pooled in zip(x, mask, y, strict=True):
        weights = np.exp(dense(one[valid], params["scores"]))
        expected = (weights * one[valid]).sum(0) / weights.sum()
        np.testing.assert_allclose(pooled, expected, rtol=1e-10)


class Times(nn.Module):
    """A block that multiplies."""

    by: float

    def __call__(self, x, train):
        return self.by * x


def test_halves_meet_in_one_layer_for_all_pairs(x64):
    norm, act = norms.build("rms_norm"), activations.build("gelu")
    permutation = functools.partial(models.Permutation, norm, act)
    halves = (functools.partial(Times, by=by) for by in (2.0, 3.0))
    layer = models.LocalGlobalLayer(*halves, depth=2, permutation=permutation)
    x = RNG.normal(size=(2, 3, 4, 6))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, False))["params"]
    params = jax.tree.map(lambda t: RNG.normal(size=t.shape), shapes)
    assert params.keys() == {"permutation"}
    own, y = params["permutation"], x
    for _ in range(2):
        y = y * np.repeat([2.0, 3.0], 3)
        h = rms_norm(gelu(local(y, own, "conv")), own["norm_0"])
        h = rms_norm(gelu(dense(h, own["fc1"])), own["norm_1"])
        y = y + rms_norm(dense(h, own["fc2"]), own["norm_2"])
    actual = jax.jit(lambda p: layer.apply({"params": p}, x, False))(params)
    np.testing.assert_allclose(actual, y, rtol=1e-9)
    with pytest.raises(UserError, match="5 channels do not split into two halves"):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), x[..., :5], False))
