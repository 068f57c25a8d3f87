"""Depthwise 2-D convolution whose values and gradients are fast on CPU as well."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from normjax.core.accumulate import EXACT, precision_of
from normjax.core.backward import custom_backward
from normjax.core.moments import at_least_float32
from normjax.core.spmd import match_varying
from normjax.core.tracing import traced_once

# LLVM vectorizes the kernel gradient over C only where it unrolls the inner sum whole.
# That holds to about 70 multiply-adds: with 50 or 100 it was up to 1.6 times slower.
_UNROLLED = 70


def _pad(x: jax.Array, kh: int, kw: int, right: int = 0) -> jax.Array:
    p, q = kh // 2, kw // 2
    return jnp.pad(x, ((0, 0), (p, p), (q, q + right), (0, 0)))


def _grouped_conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, precision: Any = None
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        [(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def _grouped_kernel_grad(
    x: jax.Array, dy: jax.Array, kh: int, kw: int, precision: Any = None
) -> jax.Array:
    # The batch is what is summed, so it plays the features, and the channels the batch.
    return lax.conv_general_dilated(
        x,
        dy,
        (1, 1),
        [(kh // 2, kh // 2), (kw // 2, kw // 2)],
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=x.shape[-1],
        precision=precision,
    )[:, :, 0]


def _shifted_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    # One fused loop over all taps. XLA keeps the padded input as a buffer of its own;
    # padding per tap instead is recomputed in the loop and took 4 times as long.
    (_, h, w, _), (kh, kw, _) = x.shape, kernel.shape
    x, taps = _pad(x, kh, kw), kernel[:, :, None, None, None]
    terms = (
        x[:, i : i + h : stride, j : j + w : stride] * taps[i, j]
        for i in range(kh)
        for j in range(kw)
    )
    return sum(terms, start=jnp.zeros((), x.dtype))


def _shifted_kernel_grad(x: jax.Array, dy: jax.Array, kh: int, kw: int) -> jax.Array:
    # A reduction of several operands is what makes XLA's CPU backend emit one loop with
    # several results, so that the taps of a kernel row share their loads. It is over
    # blocks of W only, to be vectorized. One sum over [B, H, W] per tap took 10 times
    # as long, one such loop for all taps 4 times.
    b, h, w, c = dy.shape
    blocks = -(-w // max(1, _UNROLLED // kw))
    block = -(-w // blocks)
    w, lack = blocks * block, blocks * block - w
    split = (b, h, blocks, block, c)
    x = _pad(x, kh, kw, lack)
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, lack), (0, 0))).reshape(split)
    rows = []
    for i in range(kh):
        taps = lax.reduce(
            [x[:, i : i + h, j : j + w].reshape(split) * dy for j in range(kw)],
            [jnp.zeros((), x.dtype)] * kw,
            lambda us, vs: [u + v for u, v in zip(us, vs, strict=True)],
            (3,),
        )
        rows.append(jnp.stack([jnp.sum(t, (0, 1, 2)) for t in taps]))
    return jnp.stack(rows)


def _by_platform(shifted, grouped, *operands: jax.Array) -> jax.Array:
    # XLA's own grouped convolution is 15 to 50 times slower than the shifted sum on
    # CPU. GPUs and TPUs have kernels for it, so they get it; not yet measured there.
    # Their bfloat16 convolution sums in float32 and takes half the time on a GPU.
    dtype, precision = jnp.result_type(*operands), precision_of(*operands)

    def on_cpu(*operands):
        return shifted(*map(at_least_float32, operands)).astype(dtype)

    def elsewhere(*operands):
        if precision is EXACT:
            operands = map(at_least_float32, operands)
        return grouped(*operands, precision=precision).astype(dtype)

    operands = tuple(o.astype(dtype) for o in operands)
    return lax.platform_dependent(*operands, cpu=on_cpu, default=elsewhere)


# The convolution and its kernel gradient are each other's adjoints, so each rule is
# written in terms of the other and reverse mode works to any order.
@partial(custom_backward, nondiff_argnums=(0,))
def _conv(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    shifted = partial(_shifted_conv, stride=stride)
    return _by_platform(shifted, partial(_grouped_conv, stride=stride), x, kernel)


def _conv_bwd(stride, saved, dy):
    x, kernel = saved
    if stride > 1:  # the gradients of the positions that were left out are zero
        sides = zip(x.shape[1:3], dy.shape[1:3], strict=True)
        behind = [whole - 1 - (kept - 1) * stride for whole, kept in sides]
        spread = [(0, 0, 0), *((0, n, stride - 1) for n in behind), (0, 0, 0)]
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), spread)
    dx = _conv(1, dy, kernel[::-1, ::-1]).astype(x.dtype)
    return dx, _kernel_grad(*kernel.shape[:2], x, dy).astype(kernel.dtype)


_conv.defvjp(lambda s, x, kernel: (_conv(s, x, kernel), (x, kernel)), _conv_bwd)


@partial(custom_backward, nondiff_argnums=(0, 1))
def _kernel_grad(kh: int, kw: int, x: jax.Array, dy: jax.Array) -> jax.Array:
    shifted = partial(_shifted_kernel_grad, kh=kh, kw=kw)
    return _by_platform(shifted, partial(_grouped_kernel_grad, kh=kh, kw=kw), x, dy)


def _kernel_grad_bwd(kh, kw, saved, g):
    x, dy = saved
    dx = _conv(1, dy, g[::-1, ::-1]).astype(x.dtype)
    return dx, _conv(1, x, g).astype(dy.dtype)


_kernel_grad.defvjp(
    lambda kh, kw, x, dy: (_kernel_grad(kh, kw, x, dy), (x, dy)), _kernel_grad_bwd
)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Depthwise cross-correlation, zeros around the map, at every `stride`-th position.

    y[b, h, w, c] = sum_ij kernel[i, j, c % d] x[b, sh + i - kh//2, sw + j - kw//2, c],
    s the stride and x 0 outside. Products and sums are in at least float32;
    where an array is bfloat16, the sums alone. Differentiable to any order; the
    gradients are sums of the same kind.

    Args:
      x: [B, H, W, C].
      kernel: [kh, kw, d], kh and kw odd, d a divisor of C: d = C for a kernel per
        channel, d = C / heads for one shared by the heads (channel = head * d + i).
      stride: s.

    Returns:
      [B, ceil(H / s), ceil(W / s), C] in the promoted dtype of `x` and `kernel`.

    Raises:
      ValueError: wrong ranks, an even kernel, or channels that do not divide.
    """
    if x.ndim != 4 or kernel.ndim != 3:
        raise ValueError(
            "depthwise_conv takes x [B, H, W, C] and kernel [kh, kw, d], "
            f"not {x.shape} and {kernel.shape}"
        )
    kh, kw, d = kernel.shape
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"depthwise kernel of even size {kh}x{kw}: it must be odd")
    if d == 0 or x.shape[-1] % d:
        raise ValueError(
            f"depthwise kernel of {d} channels for an input of {x.shape[-1]}: "
            "they must be equal, or the input's a multiple"
        )
    x, kernel = match_varying(x, kernel)
    return _tiled_conv(x, kernel, stride)


@traced_once("stride")
def _tiled_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    # Repeating the small kernel is free, and its adjoint sums the heads; convolving
    # [B, H, W, heads, d] instead took 4 times as long.
    kernel = jnp.tile(kernel, (1, 1, x.shape[-1] // kernel.shape[-1]))
    return _conv(stride, x, kernel)


def strided_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`depthwise_conv` for kernels of even size as well, padded by k // 2.

    Those see one position more before their own than after it.

    Args:
      x: [B, H, W, C].  kernel: [k, k, d].

    Returns:
      [B, (H + 2 (k // 2) - k) // stride + 1, the same of W, C].
    """
    # An even kernel is an odd one with zeros at its end; padding has one place more.
    more = [(0, 1 - size % 2) for size in kernel.shape[:2]]
    x, kernel = jnp.pad(x, ((0, 0), *more, (0, 0))), jnp.pad(kernel, (*more, (0, 0)))
    return depthwise_conv(x, kernel, stride)
