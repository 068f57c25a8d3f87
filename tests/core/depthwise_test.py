"""Depthwise convolution against float64 loops, in each transform it must live in."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from normjax.core import depthwise
from normjax.core.depthwise import depthwise_conv
from normjax.core.operations import multiply_adds


@pytest.fixture(autouse=True)
def strict():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def oracle(x, kernel, dy):
    """(y, dx, dkernel) from the equation and its adjoints, one product at a time."""
    (B, H, W, C), (kh, kw, d) = x.shape, kernel.shape
    y, dx, dk = np.zeros(x.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for b, h, w in np.ndindex(B, H, W):
        for i, j in np.ndindex(kh, kw):
            r, s = h + i - kh // 2, w + j - kw // 2
            if not (0 <= r < H and 0 <= s < W):
                continue
            for c in range(C):
                y[b, h, w, c] += kernel[i, j, c % d] * x[b, r, s, c]
                dx[b, r, s, c] += kernel[i, j, c % d] * dy[b, h, w, c]
                dk[i, j, c % d] += x[b, r, s, c] * dy[b, h, w, c]
    return y, dx, dk


def draw(x_shape, k_shape, dtype=np.float64):
    rng = np.random.default_rng(sum(x_shape) + 7 * sum(k_shape))
    shapes = (x_shape, k_shape, x_shape)
    return [np.asarray(rng.normal(size=s), dtype) for s in shapes]


def forward_backward(x, kernel, dy):
    y, vjp = jax.vjp(depthwise_conv, x, kernel)
    return y, *vjp(dy)


SHAPES = {
    "square": ((2, 5, 6, 4), (3, 3, 4)),
    "odd": ((1, 3, 7, 5), (5, 5, 5)),
    "larger-than-map": ((2, 2, 3, 3), (5, 5, 3)),
    "tall": ((2, 4, 5, 3), (5, 3, 3)),
    "flat": ((2, 4, 5, 3), (1, 7, 3)),
    "pointwise": ((2, 3, 3, 2), (1, 1, 2)),
    "blocks-that-lack": ((1, 2, 17, 2), (3, 5, 2)),
    "wide": ((1, 1, 59, 1), (1, 3, 1)),
    "shared-by-heads": ((2, 4, 4, 6), (5, 5, 2)),
    "shared-by-all": ((2, 3, 3, 4), (3, 3, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_equal_the_loops(name):
    operands = draw(*SHAPES[name])
    got = jax.jit(forward_backward)(*operands)
    for g, want in zip(got, oracle(*operands), strict=True):
        assert g.dtype == jnp.float64
        np.testing.assert_allclose(g, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["square", "odd", "tall", "shared-by-heads"])
@pytest.mark.parametrize("stride", [2, 3])
def test_strides_keep_every_so_many_positions(name, stride):
    """Gradients included, and no product of another position is computed elsewhere."""
    x, kernel, dy = draw(*SHAPES[name])
    kept = np.zeros_like(dy)
    kept[:, ::stride, ::stride] = dy[:, ::stride, ::stride]
    y, *gradients = oracle(x, kernel, kept)
    strided = functools.partial(depthwise_conv, stride=stride)
    got, vjp = jax.vjp(strided, x, kernel)
    wanted = y[:, ::stride, ::stride], *gradients
    found = got, *vjp(jnp.asarray(dy[:, ::stride, ::stride]))
    for g, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(g, want, rtol=1e-12, atol=1e-12)
    wide = np.tile(kernel, (1, 1, x.shape[-1] // kernel.shape[-1]))
    grouped = depthwise._grouped_conv(x, wide, stride)
    np.testing.assert_allclose(grouped, wanted[0], atol=1e-12)
    assert multiply_adds(strided, x, kernel) == got.size * kernel[..., 0].size


def test_finite_differences():
    x, kernel, dy = draw((1, 3, 4, 4), (3, 3, 2))

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(depthwise_conv(x, kernel)) * dy)

    check_grads(jax.jit(loss), (x, kernel), order=1, modes=["rev"])

    def strided(x, kernel):
        return jnp.sum(jnp.tanh(depthwise_conv(x, kernel, 2)))

    check_grads(jax.jit(strided), (x, kernel), order=2)


def grouped(x, kernel):
    kernel = jnp.tile(kernel, (1, 1, x.shape[-1] // kernel.shape[-1]))
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("shared", [1, 2])
def test_equals_the_grouped_convolution(shared):
    x, kernel, dy = draw((3, 14, 14, 8), (5, 5, 8 // shared), np.float32)
    want_y, vjp = jax.vjp(grouped, x, kernel)
    got = jax.jit(forward_backward)(x, kernel, dy)
    for g, want in zip(got, (want_y, *vjp(dy)), strict=True):
        assert g.dtype == jnp.float32
        np.testing.assert_allclose(g, want, rtol=2e-5, atol=2e-5)


def test_the_other_platforms_take_the_grouped_convolution():
    x, kernel, dy = draw((2, 4, 4, 6), (5, 3, 3), np.float32)
    traced = jax.jit(forward_backward).trace(x, kernel, dy)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "convolution" not in cpu
    for platform in ("tpu", "cuda"):
        other = traced.lower(lowering_platforms=(platform,)).as_text()
        assert other.count("stablehlo.convolution") == 3


def test_grouped_branches_equal_the_loops():
    x, kernel, dy = draw((2, 4, 5, 3), (5, 3, 3))
    y, _, dk = oracle(x, kernel, dy)
    got = depthwise._grouped_kernel_grad(x, dy, 5, 3)
    np.testing.assert_allclose(depthwise._grouped_conv(x, kernel), y, atol=1e-12)
    np.testing.assert_allclose(got, dk, atol=1e-12)


def test_bfloat16_rounds_once():
    operands = [a.astype(jnp.bfloat16) for a in draw((4, 9, 9, 6), (5, 5, 3))]
    wide = [np.asarray(a, np.float64) for a in operands]
    y, dx, dk = jax.jit(forward_backward)(*operands)
    # dkernel is rounded per channel before the heads are summed: two roundings.
    for got, want, roundings in zip((y, dx, dk), oracle(*wide), (1, 1, 3), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float64) - want)
        scale = np.abs(want) + (np.abs(want).max() if roundings > 1 else 1e-4)
        assert np.all(error <= roundings * 2.0**-8 * scale)


def test_mixed_dtypes_promote_and_gradients_keep_their_own():
    x, kernel, dy = draw((1, 3, 3, 2), (3, 3, 2), np.float32)
    y, dx, dk = jax.eval_shape(forward_backward, x.astype(jnp.bfloat16), kernel, dy)
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)


def test_vmap_over_inputs_and_kernels():
    x, kernel, dy = draw((3, 2, 4, 5, 4), (3, 3, 3, 4))
    got = jax.jit(jax.vmap(forward_backward))(x, kernel, dy)
    for n in range(3):
        for g, want in zip(got, oracle(x[n], kernel[n], dy[n]), strict=True):
            np.testing.assert_allclose(g[n], want, atol=1e-12)


def test_checkpoint_inside_scan():
    x, _, dy = draw((2, 4, 5, 2), (3, 1, 2))
    kernels = np.random.default_rng(0).normal(size=(3, 3, 1, 2))

    def scanned(x, kernels):
        layer = jax.checkpoint(lambda x, k: (jnp.tanh(depthwise_conv(x, k)), None))
        return jnp.sum(lax.scan(layer, x, kernels)[0] * dy)

    def unrolled(x, kernels):
        for k in kernels:
            x = jnp.tanh(grouped(x, k))
        return jnp.sum(x * dy)

    got = jax.jit(jax.grad(scanned, (0, 1)))(x, kernels)
    want = jax.jit(jax.grad(unrolled, (0, 1)))(x, kernels)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-12)


def test_gradient_of_gradient():
    x, kernel, dy = draw((2, 3, 4, 4), (1, 3, 2))

    def penalty(conv):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)) * dy)

        def norm(x, kernel):
            gx, gk = jax.grad(loss, (0, 1))(x, kernel)
            return jnp.sum(gx**2) + jnp.sum(gk**3)

        return jax.jit(jax.grad(norm, (0, 1)))(x, kernel)

    got, want = penalty(depthwise_conv), penalty(grouped)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-10)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from normjax.core.depthwise import depthwise_conv

def both(x, kernel, dy):
    y, vjp = jax.vjp(depthwise_conv, x, kernel)
    return y, *vjp(dy)

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x, dy = np.random.default_rng(0).normal(size=(2, 8, 6, 17, 4)).astype(np.float32)
kernel = x[0, :3, :5, :2]
want = both(x, kernel, dy)
batch, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
placed = jax.device_put((x, kernel, dy), (batch, whole, batch))
step = jax.jit(both, out_shardings=(batch, batch, whole)).lower(*placed).compile()
text = step.as_text()
assert "all-gather" not in text and "all-to-all" not in text, text
assert "collective-permute" not in text, text
assert "all-reduce" in text
mapped = jax.shard_map(
    both, mesh=mesh, in_specs=(P("data"), P(), P("data")),
    out_specs=(P("data"), P("data"), P()))
for got in (step(*placed), jax.jit(mapped)(*placed)):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=2e-5)
"""


def test_a_sharded_batch_stays_sharded():
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("x_shape", "k_shape", "says"),
    [
        ((1, 4, 4, 2), (2, 3, 2), "2x3: it must be odd"),
        ((1, 4, 4, 2), (3, 4, 2), "3x4: it must be odd"),
        ((4, 4, 2), (3, 3, 2), r"not \(4, 4, 2\) and \(3, 3, 2\)"),
        ((1, 4, 4, 2), (3, 3, 1, 2), r"not .* and \(3, 3, 1, 2\)"),
        ((1, 4, 4, 6), (3, 3, 4), "4 channels for an input of 6"),
        ((1, 4, 4, 2), (3, 3, 4), "4 channels for an input of 2"),
    ],
)
def test_wrong_shapes_are_named(x_shape, k_shape, says):
    with pytest.raises(ValueError, match=says) as error:
        depthwise_conv(jnp.zeros(x_shape), jnp.zeros(k_shape))
    assert "\n" not in str(error.value)
