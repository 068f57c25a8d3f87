"""Masked moments against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from normjax.core.moments import align_mask, at_least_float32, masked_moments


def oracle(x, axes, mask=None):
    """Loops over the kept positions; `mask` of the shape of x."""
    x = np.asarray(x, np.float64)
    mask = np.ones(x.shape, bool) if mask is None else mask
    moved = np.moveaxis(x, axes, range(len(axes)))
    valid = np.moveaxis(mask, axes, range(len(axes)))
    kept = moved.shape[len(axes) :]
    mean, var, count = (np.zeros(kept) for _ in range(3))
    for index in np.ndindex(*kept):
        values = moved[(..., *index)][valid[(..., *index)]]
        count[index] = values.size
        if values.size:
            mean[index], var[index] = values.mean(), values.var()
    return tuple(np.expand_dims(v, axes) for v in (mean, var, count))


def sample(shape, mean=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return (mean + rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("axes", [(0,), (0, 1), (-1,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_without_mask(axes, mean):
    x = sample((5, 4, 3), mean)
    positive = tuple(a % 3 for a in axes)
    for ours, theirs in zip(
        masked_moments(jnp.asarray(x), axes), oracle(x, positive), strict=True
    ):
        assert ours.shape == theirs.shape and ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_mask_of_every_rank(rank, mean):
    x = sample((6, 4, 3), mean)
    shape = x.shape[:rank]
    mask = np.random.default_rng(rank).random(shape) < 0.6
    full = np.broadcast_to(mask.reshape(shape + (1,) * (3 - rank)), x.shape)
    poisoned = np.where(full, x, np.nan)
    ours = masked_moments(jnp.asarray(poisoned), (0, 1), mask=jnp.asarray(mask))
    for a, b in zip(ours, oracle(x, (0, 1), full), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_mask_that_broadcasts_and_mask_of_numbers():
    x, mask = sample((4, 5, 2)), np.array([1, 0, 1, 1, 0])
    full = np.broadcast_to(mask[None, :, None].astype(bool), x.shape)
    ours = masked_moments(jnp.asarray(x), (0, 1), mask=jnp.asarray(mask)[None])
    for a, b in zip(ours, oracle(x, (0, 1), full), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_nothing_valid_gives_zeros_and_finite_gradients():
    x, mask = jnp.asarray(sample((4, 3))), jnp.zeros(4, bool)
    for value in masked_moments(x, (0,), mask=mask):
        np.testing.assert_array_equal(value, np.zeros((1, 3)))
    total = jax.grad(lambda v: sum(map(jnp.sum, masked_moments(v, (0,), mask=mask))))
    np.testing.assert_array_equal(total(x), np.zeros((4, 3)))


def test_bfloat16_is_summed_in_float32():
    x = jnp.asarray(sample((4096, 2), 3.0), jnp.bfloat16)
    ours = masked_moments(x, (0,))
    for a, b in zip(ours, oracle(x.astype(jnp.float32), (0,)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_float64_stays_float64(x64):
    x = np.random.default_rng(0).normal(1e4, 1, (64, 3))
    for a, b in zip(masked_moments(jnp.asarray(x), (0,)), oracle(x, (0,)), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert at_least_float32(jnp.asarray(x)).dtype == jnp.float64


@pytest.mark.parametrize("axis_name", ["data", ("data",), ("data", "model")])
@pytest.mark.parametrize("masked", [False, True])
def test_shards_with_unequal_counts_equal_one_device(axis_name, masked):
    names, shape = (
        (("data",), (4,)) if "model" not in axis_name else (axis_name, (2, 2))
    )
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), names)
    x = sample((16, 3), 1e3)
    mask = np.arange(16) < 5 if masked else None  # shards of 4, 1, 0 and 0
    rows = PartitionSpec(names)

    def local(x, *mask):
        mask = mask[0] if mask else None
        return masked_moments(x, (0,), mask=mask, axis_name=axis_name)

    arguments = (x,) if mask is None else (x, mask)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())
    together = jax.jit(sharded)(*map(jnp.asarray, arguments))
    full = None if mask is None else np.broadcast_to(mask[:, None], x.shape)
    for a, b in zip(together, oracle(x, (0,), full), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 3, 2), (1, 2)])
def test_masks_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="mask of shape"):
        align_mask(jnp.ones(shape, bool), jnp.ones((4, 3)))
