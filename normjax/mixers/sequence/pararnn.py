"""Nonlinear recurrent cells as a mixer, solved for all positions at once."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.accumulate import einsum
from normjax.core.collections import DETAILS
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.nonlinear_recurrence import (
    CELLS,
    SOLVERS,
    Given,
    Solver,
    residual,
    solve,
)
from normjax.mixers.steps import (
    dense_of,
    rows_of,
    short_convolution,
    uniform_taps,
)


class ParallelCell(nn.Module):
    """A nonlinear recurrent cell over all positions (ParaRNN; Danieli et al., 2025).

        h_t = f(h_{t-1}, B x_t + b)

    with f elementwise, of `ops.nonlinear_recurrence`, and B block-diagonal with one
    block a head. In at least float32.

    Attributes:
      features: width D of the state.
      num_heads: blocks of B.
      cell: "gru" or "lstm".
      solver: "tolerance", "newton" or "sequential".
      iterations: of "newton".
      tolerance: residual from which "tolerance" makes one more step, its last.
      param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> layer = mixers.ParallelCell(features=8, num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 4))  # [B, L, C]
      >>> (h, last), variables = layer.init_with_output(jax.random.key(1), x)
      >>> one = layer.clone(solver="sequential").apply(variables, x)[0]
      >>> h.shape, last.shape, bool(abs(h - one).max() < 1e-6)
      ((2, 6, 8), (2, 1, 8), True)
    """

    features: int
    num_heads: int
    cell: str = "gru"
    solver: str = "tolerance"
    iterations: int = 3
    tolerance: float = 1e-6
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
        """x: [B, L, C] -> h [B, L, D] in the dtype of x, the last state [B, S, D].

        S is 1, or 2 for (c, h) of an LSTM. The largest residual goes to the collection
        `details` where that is asked for.

        Args:
          mask: bool [B, L]; False is padding, at which the state stays as it is.
          positions: [B, L]; 0 starts a document with an empty state. None: one document
            a row.
          state: the one before the first position; None for zeros.

        Raises:
          UserError: unknown `cell` or `solver`; C or D does not split into heads.
        """
        for what, value, known in (
            ("cell", self.cell, CELLS),
            ("solver", self.solver, SOLVERS),
        ):
            if value not in known:
                raise UserError(one_of(what, value, known))
        cell = CELLS[self.cell]
        weights = {
            name: at_least_float32(self._weight(f"{name}_kernel", rows))
            for name, rows in cell.weights.items()
        }
        dtype = x.dtype
        inputs = self._inputs(only_tokens(x, mask))
        wide = jnp.result_type(inputs, *weights.values())
        if state is None:
            state = jnp.zeros((len(x), cell.size, self.features), wide)
        starts = None if positions is None else positions == 0
        given = Given(inputs.astype(wide), starts, mask)
        solver = Solver(self.solver, self.iterations, self.tolerance)
        h = solve(cell.step, solver, weights, given, state.astype(wide))
        if self.is_mutable_collection(DETAILS) and not self.is_initializing():
            left = residual(cell.step, weights, given, state, h)
            self.sow(DETAILS, "newton_residual", left)
        return h[:, :, -1].astype(dtype), h[:, -1]

    def _weight(self, name: str, rows: int) -> jax.Array:
        init = nn.initializers.normal(2 / (5 * self.features) ** 0.5)
        return self.param(name, init, (rows, self.features), self.param_dtype)

    def _inputs(self, x: jax.Array) -> jax.Array:
        """B x + b, [B, L, 3, D], multiplied in the type of x, in at least float32."""
        heads, width = self.num_heads, x.shape[-1]
        if width % heads or self.features % heads:
            raise UserError(
                f"widths {width} and {self.features} do not split into {heads} heads"
            )
        inputs, outputs = width // heads, self.features // heads
        # As released: the outputs of a whole row count in one cell, of a head in other.
        fan_out = self.features if self.cell == "gru" else outputs
        limit = (6 / (inputs + fan_out)) ** 0.5

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        def memories(key, shape, dtype):
            del key
            fall = -jnp.linspace(0, 1, shape[-1], dtype=dtype)
            return jnp.zeros(shape, dtype).at[0].set(fall)

        shape = (heads, inputs, 3, outputs)
        kernel = self.param("input_kernel", uniform, shape, self.param_dtype)
        bias = self.param("bias", memories, (3, self.features), self.param_dtype)
        kernel, bias = kernel.astype(x.dtype), at_least_float32(bias)
        parts = x.reshape(*x.shape[:-1], heads, inputs)
        y = einsum("blhi,higo->blgho", parts, kernel)
        return y.reshape(*y.shape[:3], -1) + bias[None, None]


@MIXERS.register("pararnn", "seq", "grid", "causal", "decode", "mask")
class ParaRNN(nn.Module):
    """The block of ParaRNN: a nonlinear recurrence behind a convolution. Causal.

        u = cell(silu(convolution over 4 positions of W_u x))
        y = proj(RMSNorm(u) * silu(W_z x))

    (Danieli et al., 2025; the block after the paper's figure.) O(L D**2 / num_heads)
    multiply-adds beside the projections; the recurrence in at least float32, by
    Newton's method over all positions at once, or one after the other.

    Attributes:
      num_heads: blocks of the cell's input matrix.
      cell: "gru" or "lstm".
      features: width of the recurrence; None for that of x.
      conv_width: positions of the depthwise convolution.
      solver: "tolerance" (Newton steps until it is solved), "newton" (`iterations`
        steps) or "sequential".
      iterations: of "newton".
      tolerance: residual from which "tolerance" makes one more step, its last.
      epsilon: of the norm.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.ParaRNN(num_heads=2, cell="lstm")
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['branches', 'cell', 'conv_bias', 'conv_kernel', 'norm', 'proj']
    """

    num_heads: int
    cell: str = "gru"
    features: int | None = None
    conv_width: int = 4
    solver: str = "tolerance"
    iterations: int = 3
    tolerance: float = 1e-6
    epsilon: float = 1e-6
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
        width = self.features or x.shape[-1]
        dense = {"use_bias": False, **dense_of(self)}
        u, gate = SplitDense(2, width, name="branches", **dense)(rows)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        u = only_tokens(u, mask)
        u = short_convolution(self, u, mask, positions, decode, uniform_taps)
        unit = ParallelCell(
            *(width, self.num_heads, self.cell),
            *(self.solver, self.iterations, self.tolerance),
            param_dtype=self.param_dtype,
            name="cell",
        )
        state = self._remembered(len(u), width) if decode else None
        before = None if state is None else state.value
        u = jax.nn.silu(u)
        h, last = unit(u, mask=mask, positions=positions, state=before)
        if state is not None:
            state.value = last
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        o = (norm(h) * jax.nn.silu(at_least_float32(gate))).astype(h.dtype)
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"features": self.features or dim}

    @nn.nowrap
    def _remembered(self, batch: int, width: int) -> nn.Variable:
        size = CELLS[self.cell].size
        wide = jnp.promote_types(self.param_dtype, jnp.float32)
        return cache.variable(self, "state", (batch, size, width), wide)
