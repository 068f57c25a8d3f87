"""Griffin's gated linear recurrence, and the block around it."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.accumulate import precision_of
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.gated_recurrence import (
    gated_recurrence,
    gated_recurrence_in_blocks,
)
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.steps import dense_of, rows_of, short_convolution


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

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> layer = mixers.RGLRU(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> (h, last), variables = layer.init_with_output(jax.random.key(1), x)
      >>> h.shape, bool((h[:, -1] == last).all())
      ((2, 6, 8), True)
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
            cpu=functools.partial(gated_recurrence_in_blocks, precision),
            default=functools.partial(gated_recurrence, precision),
        )
        return h.astype(dtype), last

    def _gate(self, name: str, width: int) -> tuple[jax.Array, jax.Array]:
        heads, block = self.num_heads, width // self.num_heads
        normal, zeros = nn.initializers.normal(block**-0.5), nn.initializers.zeros
        shape = (heads, block, block)
        kernel = self.param(f"{name}_kernel", normal, shape, self.param_dtype)
        bias = self.param(f"{name}_bias", zeros, shape[:2], self.param_dtype)
        return kernel, bias


def _a_param(key, shape, dtype):
    square = jax.random.uniform(key, shape, minval=0.9**2, maxval=0.999**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square))).astype(dtype)


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

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.RecurrentBlock(num_heads=2, features=16)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['branches', 'conv_bias', 'conv_kernel', 'proj', 'rg_lru']
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
        rows, mask = rows_of(x, mask)
        width, dense = self.features or x.shape[-1], dense_of(self)
        gate, u = SplitDense(2, width, name="branches", **dense)(rows)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        u, state = only_tokens(u, mask), None
        if decode:
            wide = jnp.promote_types(u.dtype, jnp.float32)
            state = cache.variable(self, "state", (u.shape[0], width), wide)
        init = nn.initializers.normal((0.01 / self.conv_width) ** 0.5)
        u = short_convolution(self, u, mask, positions, decode, init)
        unit = RGLRU(self.num_heads, self.param_dtype, name="rg_lru")
        before = None if state is None else state.value
        h, last = unit(u, mask=mask, positions=positions, state=before)
        if state is not None:
            state.value = last
        o = jax.nn.gelu(gate, approximate=True) * h
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"features": self.features or dim}
