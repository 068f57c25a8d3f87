"""Griffin's two mixers: a gated linear recurrence and attention to a window."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.accumulate import einsum, precision_of
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers import cache, decay
from normjax.mixers.base import (
    MIXERS,
    normalized_heads,
    softmax_attention,
    tokens_of,
)
from normjax.mixers.rotary import rotate_halves
from normjax.mixers.sequence import RecurrentMixer, documents_of, only_tokens

_SHARPNESS = 8.0
_BLOCK = 512  # positions that a CPU works through at a time
_STEEPEST = 1000.0  # bound of the derivative of a square root near 0, as released


class RGLRU(nn.Module):
    """Real-gated linear recurrent unit (Griffin; De et al., 2024).

        r, i = sigmoid(W x + b), block-diagonal W with one block per head
        a = exp(-8 r softplus(A))       h_t = a_t h_{t-1} + sqrt(1 - a_t**2) (i_t x_t)

    elementwise, in at least float32, and so is W x unless x is bfloat16. Where a
    document starts, h_t = i_t x_t.

    Attributes:
      num_heads: blocks of W.
      param_dtype: of the parameters; A is drawn so that exp(-softplus(A)) lies in
        [0.9, 0.999].
    """

    num_heads: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        state: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """x: [B, L, D] -> h [B, L, D] in the dtype of x, the last h [B, D].

        Args:
          mask: bool [B, L]; False is padding, at which h stays as it is.
          positions: [B, L]; 0 starts a document. None: one document a row.
          state: the h before the first position, [B, D]; None for zeros. A document
            that starts at the first position forgets it.

        Raises:
          UserError: D does not split into `num_heads` blocks.
        """
        width, dtype, precision = x.shape[-1], x.dtype, precision_of(x)
        if width % self.num_heads:
            raise UserError(f"width {width} does not split into {self.num_heads} heads")
        weights = {
            "recurrence": self._gate("recurrence_gate", width),
            "input": self._gate("input_gate", width),
            "rate": self.param("a_param", _a_param, (width,), self.param_dtype),
        }
        x = only_tokens(at_least_float32(x), mask)
        if positions is None and state is None:  # the first token starts
            tokens = jnp.ones(x.shape[:2], bool) if mask is None else mask
            positions = jnp.cumsum(tokens, axis=1) - 1
        starts = None if positions is None else positions == 0
        if state is None:
            state = jnp.zeros((x.shape[0], width), x.dtype)
        h, last = jax.lax.platform_dependent(
            *(weights, x, starts, mask, state),
            cpu=functools.partial(_gated_recurrence_in_blocks, precision),
            default=functools.partial(_gated_recurrence, precision),
        )
        return h.astype(dtype), last

    def _gate(self, name: str, width: int) -> tuple[jax.Array, jax.Array]:
        heads, block = self.num_heads, width // self.num_heads
        normal, zeros = nn.initializers.normal(block**-0.5), nn.initializers.zeros
        shape = (heads, block, block)
        kernel = self.param(f"{name}_kernel", normal, shape, self.param_dtype)
        bias = self.param(f"{name}_bias", zeros, shape[:2], self.param_dtype)
        return kernel, bias


def _gated_recurrence(precision, weights, x, starts, mask, state):
    """(h, the last h) of RGLRU; x [B, L, D], starts and mask [B, L] or None."""
    r, i = (_gate(weights[name], x, precision) for name in ("recurrence", "input"))
    rate = jax.nn.softplus(at_least_float32(weights["rate"])).reshape(1, 1, -1)
    log_a = -_SHARPNESS * r * rate
    a, kept = jnp.exp(log_a), _bounded_sqrt(-jnp.expm1(2 * log_a))
    if starts is not None:
        a = jnp.where(starts[..., None], 0, a)
        kept = jnp.where(starts[..., None], 1, kept)
    if mask is not None:
        a = jnp.where(mask[..., None], a, 1)
    return decay.diagonal(a, kept * i * x, state)


def _gated_recurrence_in_blocks(precision, weights, x, starts, mask, state):
    """The same in blocks of positions whose intermediate arrays stay in the cache."""
    length = x.shape[1]
    count = length // _BLOCK
    if count < 2 or length % _BLOCK:
        return _gated_recurrence(precision, weights, x, starts, mask, state)

    def split(t):
        """[B, L, ...] -> [count, B, _BLOCK, ...]."""
        return jnp.moveaxis(t.reshape(t.shape[0], count, _BLOCK, *t.shape[2:]), 1, 0)

    def block(state, part):
        x, starts, mask = part
        h, last = _gated_recurrence(precision, weights, x, starts, mask, state)
        return last, h

    last, h = jax.lax.scan(block, state, jax.tree.map(split, (x, starts, mask)))
    return jnp.moveaxis(h, 0, 1).reshape(x.shape), last


def _gate(weights, x, precision):
    """sigmoid(W x + b), W block-diagonal."""
    kernel, bias = (at_least_float32(w) for w in weights)
    parts = x.reshape(*x.shape[:-1], *bias.shape)
    y = einsum("blhi,hij->blhj", parts, kernel, precision=precision)
    y += bias[None, None]
    return jax.nn.sigmoid(y.reshape(x.shape))


def _a_param(key, shape, dtype):
    square = jax.random.uniform(key, shape, minval=0.9**2, maxval=0.999**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square))).astype(dtype)


@jax.custom_jvp
def _bounded_sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx / jnp.sqrt(jnp.maximum(4 * x, _STEEPEST**-2))


@MIXERS.register("rg_lru", "seq", "grid", "causal", "decode", "mask")
class RecurrentBlock(nn.Module):
    """Griffin's recurrent block (De et al., 2024). Causal.

        y = proj(gelu(W1 x + b1) * RGLRU(convolution over 4 positions of W2 x + b2))

    with the tanh form of GELU, as released. O(L D**2 / num_heads) multiply-adds beside
    the projections; the recurrence in at least float32.

    Attributes:
      num_heads: blocks of the gates.
      features: width of the recurrence; None for that of x.
      conv_width: positions of the depthwise convolution.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    features: int | None = None
    conv_width: int = 4
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("branches",)
    writes: ClassVar[str | None] = "proj"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, D], row by row -> same.

        Args:
          mask: bool [B, L] or [B, H, W]; False is padding, which leaves no trace in the
            recurrence and is 0 for the convolution.
          positions: int [B, L], the position of each token in its document; 0 starts
            a document with an empty state. None: one document a row.
          train: unused: one rule.
          decode: the tokens continue those of the calls before, see `mixers.cache`,
            which holds the state and the last inputs of the convolution.

        Raises:
          UserError: `decode` with `positions`.
        """
        del train
        shape, x = x.shape, tokens_of(x)
        mask = None if mask is None else mask.reshape(x.shape[:2])
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"kernel_init": self.kernel_init, **types}
        width = self.features or x.shape[-1]
        gate, u = SplitDense(2, width, name="branches", **dense)(x)
        u, taps, state = only_tokens(u, mask), self.conv_width - 1, None
        if decode:
            positions = cache.next_positions(self, x.shape[:2], mask, positions)
            wide = jnp.promote_types(u.dtype, jnp.float32)
            state = cache.variable(self, "state", (u.shape[0], width), wide)
            u = cache.with_last(self, "inputs", u, taps, mask)
            u = self._convolve(u, cache.padding_first(positions, mask))
            u = cache.padding_in_place(u, mask)
        else:
            u = self._convolve(jnp.pad(u, ((0, 0), (taps, 0), (0, 0))), positions)
        unit = RGLRU(self.num_heads, self.param_dtype, name="rg_lru")
        before = None if state is None else state.value
        h, last = unit(u, mask=mask, positions=positions, state=before)
        if state is not None:
            state.value = last
        o = jax.nn.gelu(gate, approximate=True) * h
        return Dense(shape[-1], name="proj", **dense)(o).reshape(shape)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"features": self.features or dim}

    def _convolve(self, u: jax.Array, positions: jax.Array | None) -> jax.Array:
        """Sum over the last `conv_width` positions of the same document.

        Args:
          u: [B, conv_width - 1 + L, D], with what comes before the L positions.
        """
        size, channels = self.conv_width, u.shape[-1]
        length = u.shape[1] - size + 1
        init = nn.initializers.normal((0.01 / size) ** 0.5)
        kernel = self.param("conv_kernel", init, (size, channels), self.param_dtype)
        zeros = nn.initializers.zeros
        bias = self.param("conv_bias", zeros, (channels,), self.param_dtype)
        if positions is None:
            positions = jnp.arange(length)[None]
        y = bias.astype(u.dtype).reshape(1, 1, -1)
        for back in range(size):
            start = size - 1 - back
            before = u[:, start : start + length]
            inside = (positions >= back)[..., None]
            tap = kernel[size - 1 - back].astype(u.dtype).reshape(1, 1, -1)
            y = y + jnp.where(inside, before, 0) * tap
        return y


@MIXERS.register("local_attention", "seq", "grid", "causal", "decode", "mask")
class LocalAttention(RecurrentMixer):
    """Griffin's attention to the last `window` positions and itself (De et al., 2024).

    softmax(q k^T / sqrt(K)) v with one key and value for all heads (multi-query,
    Shazeer, 2019) and rotary positions on the first half of each head. Queries, keys
    and values have no bias, the output has. O(L window D) multiply-adds; softmax in at
    least float32.

    Attributes: those of SequenceMixer and
      window: how far back a token sees.
    """

    window: int = 1024

    reads: ClassVar[tuple[str, ...]] = ("q", "kv")
    proj_bias: ClassVar[bool] = True

    def _mix(self, x, mask, positions, train, decode):
        width, dense = self._width(x), {"use_bias": False, **self._dense()}
        (q,) = self._split(Dense(width, name="q", **dense)(x))
        size = q.shape[-1]
        if size % 4:
            raise UserError(f"heads of {size} channels: rotation needs a multiple of 4")
        k, v = (t[:, :, None] for t in SplitDense(2, size, name="kv", **dense)(x))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        places = jnp.arange(x.shape[1])[None] if positions is None else positions
        q, k = (
            jnp.concatenate(
                (rotate_halves(t[..., : size // 2], places), t[..., size // 2 :]), -1
            )
            for t in (q, k)
        )
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        if not decode:
            return self._attend(q, k, v, mask, positions)
        size = min(self.window, x.shape[1])
        k = cache.with_last(self, "key", k, size, mask)
        v = cache.with_last(self, "value", v, size, mask)
        # As many of the last keys are tokens as there have been.
        known = jnp.arange(k.shape[1])[None, ::-1] <= places[:, -1:]
        o = self._attend_last(cache.padding_first(q, mask), k, v, known)
        return cache.padding_in_place(o, mask)

    def _attend_last(self, q, k, v, known):
        """Queries [B, N, H, K] of the last N of the keys [B, M, 1, K]."""
        before = k.shape[1] - q.shape[1]
        if q.shape[1] > before:  # blocks cost less than all pairs
            q = jnp.pad(q, ((0, 0), (before, 0), (0, 0), (0, 0)))
            return self._attend(q, k, v, known, None)[:, before:]
        order = jnp.arange(k.shape[1])
        back = order[before:, None] - order[None]
        near = (back >= 0) & (back <= self.window)
        visible = known[:, None, None] & near[None, None]
        # Heads as further queries: keys and values need no copy for each.
        heads = q.reshape(q.shape[0], -1, 1, q.shape[3])
        visible = jnp.repeat(visible, q.shape[2], 2)
        return softmax_attention(heads, k, v, mask=visible).reshape(q.shape)

    def _attend(self, q, k, v, mask, positions):
        """Blocks of `window` queries see their own block of keys and the one before."""
        (batch, length, heads, size), window = q.shape, min(self.window, q.shape[1])
        blocks = -(-length // window)
        rest = blocks * window - length

        def split(t, before=False):
            """[B, L, ...] -> [B * n, window or 2 window, ...]."""
            ends = [(0, 0)] * t.ndim
            ends[1] = (window if before else 0, rest)
            t = jnp.pad(t, ends)
            t = t.reshape(batch, -1, window, *t.shape[2:])
            t = jnp.concatenate((t[:, :-1], t[:, 1:]), 2) if before else t
            return t.reshape(batch * blocks, *t.shape[2:])

        known = jnp.ones((batch, length), bool) if mask is None else mask
        visible = split(known, True)[:, None, None, :]
        back = jnp.arange(window)[:, None] + window - jnp.arange(2 * window)[None]
        visible &= ((back >= 0) & (back <= self.window))[None, None]
        if positions is not None:
            own = jnp.broadcast_to(documents_of(positions), (batch, length))
            own_q, own_k = split(own), split(own, True)
            visible &= (own_q[:, :, None] == own_k[:, None])[:, None]
        k, v = (jnp.repeat(split(t, True), heads, 2) for t in (k, v))
        o = softmax_attention(split(q), k, v, mask=visible)
        return o.reshape(batch, -1, heads, size)[:, :length]
