"""Kernels stand for functions: derivatives, maps over batches, sharded arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.core.spmd import batch_divided
from normjax.kernels.choice import kernel_or_function
from normjax.mixers import WindowAttention
from normjax.plan.topology import devices_of, prepare

X = jax.random.normal(jax.random.key(0), (4, 3))
W = jax.random.normal(jax.random.key(1), (3,))
CALL = "tpu_custom_call"


def doubled(x, w):
    return jnp.sin(x) * w.reshape(1, -1)


def never(x, w):
    raise AssertionError("a kernel for TPUs elsewhere")


def chosen(x, w):
    return kernel_or_function(never, doubled, (x,), w)


def with_pullback(x, w):
    return kernel_or_function(never, doubled, (x,), w, pullback=never)


def with_residuals(x, w):
    def kept(x, w):
        return doubled(x, w), {"kept": jnp.zeros((2, 5))}

    options = {"pullback": never, "with_residuals": (never, kept)}
    return kernel_or_function(never, doubled, (x,), w, **options)


ALL = [chosen, with_pullback, with_residuals]


def test_other_platforms_have_the_function():
    np.testing.assert_array_equal(chosen(X, W), doubled(X, W))
    np.testing.assert_array_equal(jax.jit(chosen)(X, W), jax.jit(doubled)(X, W))


@pytest.mark.parametrize("chosen", ALL)
def test_derivatives_are_those_of_the_function(chosen):
    def gradient(function):
        return jax.grad(lambda x, w: jnp.sum(function(x, w) ** 2), (0, 1))(X, W)

    for found, expected in zip(gradient(chosen), gradient(doubled), strict=True):
        np.testing.assert_allclose(found, expected, 1e-6)
    tangents = X[::-1], W[::-1]
    found = jax.jvp(chosen, (X, W), tangents)[1]
    np.testing.assert_allclose(found, jax.jvp(doubled, (X, W), tangents)[1], 1e-6)
    second = jax.hessian(lambda w: jnp.sum(chosen(X, w) ** 2))(W)
    np.testing.assert_allclose(second, np.diag(2 * np.sum(np.sin(X) ** 2, 0)), 1e-5)


@pytest.mark.parametrize("chosen", ALL)
def test_it_is_mapped_over_any_axis(chosen):
    several = jnp.stack([X, X + 1], 1)
    found = jax.vmap(chosen, in_axes=(1, None), out_axes=1)(several, W)
    expected = jnp.stack([doubled(X, W), doubled(X + 1, W)], 1)
    np.testing.assert_allclose(found, expected, 1e-6)
    gradient = jax.grad(lambda x, w: jnp.sum(chosen(x, w) ** 2))
    found = jax.vmap(gradient, in_axes=(1, None))(several, W)
    plain = jax.grad(lambda x, w: jnp.sum(doubled(x, w) ** 2))
    np.testing.assert_allclose(found, jnp.stack([plain(X, W), plain(X + 1, W)]), 1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_the_gradient_has_a_kernel_of_its_own(kept):
    """For a TPU it is the pullback that is traced, of primals and cotangents."""
    seen = []

    def kernel(x, w):
        return 2 * doubled(x, w)

    def more(x, w):
        return doubled(x, w), {"kept": jnp.zeros((2, 5))}

    def pullback(primals, cotangents, *residuals):
        seen.append((primals, cotangents, residuals))
        return tuple(jnp.zeros_like(p) for p in primals)

    options = {"with_residuals": (more, more)} if kept else {}

    def function(x, w):
        given = kernel, doubled, (x,), w
        return kernel_or_function(*given, pullback=pullback, **options)

    def gradient(x, w):
        return jax.grad(lambda x: jnp.sum(function(x, w)))(x)

    jax.jit(gradient).trace(X, W).lower(lowering_platforms=("tpu",))
    ((x, w), cotangent, residuals), *_ = seen
    assert x.shape == cotangent.shape == X.shape and w.shape == W.shape
    assert [each["kept"].shape for each in residuals] == [(2, 5)] * kept


@pytest.mark.parametrize("chosen", ALL)
def test_each_device_has_a_part_of_the_batch(chosen):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def loss(x, w):
        with batch_divided(mesh, ("data",)):
            return jnp.sum(chosen(x, w) ** 2)

    def plain(x, w):
        return jnp.sum(doubled(x, w) ** 2)

    x = jax.device_put(X, split)
    found = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, W)
    expected = jax.value_and_grad(plain, (0, 1))(X, W)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert "shard_map" in str(jax.make_jaxpr(loss)(x, W))
    odd = jax.make_jaxpr(loss)(X[:3], W)
    assert "shard_map" not in str(odd)


def test_trees_of_several_arrays():
    def several(given, w):
        x, nothing = given
        assert nothing is None
        return {"sine": doubled(x, w), "sum": x.sum(-1)}, None

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    expected = several((X, None), W)
    chex.assert_trees_all_close(
        kernel_or_function(never, several, ((X, None),), W), expected, rtol=1e-6
    )
    with batch_divided(mesh, ("data",)):
        found = kernel_or_function(never, several, ((X, None),), W)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_tpu_has_the_kernel_on_every_device(chip, devices):
    prepare([chip])
    mesh = Mesh(np.array(devices_of(chip)[:devices]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    mixer = WindowAttention(num_heads=3, shift=3, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((32, 56, 56, 96), jnp.bfloat16, sharding=split)
    variables = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=whole),
        jax.eval_shape(mixer.init, jax.random.key(0), x),
    )

    def compiled(apply):
        return jax.jit(apply).lower(variables, x).compile().as_text()

    def apply(variables, x):
        with batch_divided(mesh, ("data",)):
            return mixer.apply(variables, x)

    (call,) = (line for line in compiled(apply).splitlines() if CALL in line)
    assert f"bf16[56,56,{32 // devices},96]" in call
    assert (CALL in compiled(mixer.apply)) == (devices == 1)  # nobody says how
