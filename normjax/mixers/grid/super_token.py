"""Attention between super tokens (STViT)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import pair
from normjax.mixers.ops.super_tokens import (
    association,
    cells_of,
    from_super_tokens,
    super_tokens,
)
from normjax.mixers.steps import dense_of, normalized_maps, own_core, project


@MIXERS.register("super_token", "grid", "mask")
class SuperTokenAttention(Mixer):
    """A core between super tokens (STViT; Huang et al., 2023).

    Positions belong in parts A to the 3 x 3 super tokens around their cell,

        A_pt = softmax_t(x_p . s_t / sqrt(C)),  s = means of the cells
        s_t = sum_p A_pt x_p / sum_p A_pt,  y_p = sum_t A_pt proj(core(W s))_t

    A has no gradient. Super tokens beyond the map are 0 and get their part of it, which
    is lost. With cells of one position y = proj(core(W x)). O(L C) multiply-adds, and
    the core on L / (h w) super tokens. Softmax and sums in at least float32.

    Attributes:
      core: what attends between super tokens: a key of `mixers.CORES` ("softmax",
        "relative_softmax", "sla", "focused_linear"), a dict with `name` and arguments,
        or a factory.
      token_size: side of a cell, or (height, width). Zeros on the right and below fill
        cells that the map does not, and take part in their means.
      iterations: how often A is computed.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SuperTokenAttention(num_heads=2, token_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 5, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 5, 4, 8), ['proj', 'qkv'])
    """

    core: Spec = "softmax"
    token_size: int | tuple[int, int] = 2
    iterations: int = 1
    qkv_bias: bool = True

    # The input decides on the association, which is not linear; what comes out is put
    # together in parts that do not sum to 1 at the border.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of the core fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions are as those that fill cells.
          train: passed to `qk_norm`.

        Raises:
          UserError: no iteration, initialised for another grid, or D does not split
            into heads.
        """
        cell, grid = pair(self.token_size), x.shape[1:3]
        if self.iterations < 1 or min(cell) < 1:
            raise UserError(
                f"super tokens of {cell[0]}x{cell[1]} after {self.iterations} "
                "iterations: there is at least one of each"
            )
        if cell == (1, 1):
            return self._attended(x, mask, train)
        pixels = cells_of(only_valid(x, mask), cell)
        weights, total = association(pixels, self.iterations)
        tokens = super_tokens(pixels, weights, total).astype(x.dtype)
        tokens = self._attended(tokens, None, train)
        y = from_super_tokens(tokens, weights, cell, grid)
        return y.astype(tokens.dtype)

    def _attended(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        core = own_core(self)
        q, k, v = project(self, x)
        q, k = normalized_maps(self, q, k, mask, train)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(
            core(q, k, v, mask=mask)
        )
