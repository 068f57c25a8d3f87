"""Attention to a map pooled to a fixed size (PVT v2)."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense, SplitDense
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.registry import Part
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, reduction_norm_of
from normjax.mixers.ops.attend import softmax_over_maps
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import pooled_valid
from normjax.mixers.steps import dense_of, normalized_maps


@MIXERS.register("linear_spatial_reduction", "grid", "mask")
class LinearSpatialReductionAttention(Mixer):
    """Softmax attention to a map pooled to a fixed size (PVT v2; Wang et al., 2022).

        r = gelu(norm(W pool(x))),  softmax(q(x) k(r)^T / sqrt(K)) v(r)

    per head, then a projection. Bin i of the pool averages rows floor(i H / s) to
    ceil((i + 1) H / s), columns likewise. O(L s**2 D) multiply-adds with s =
    `pool_size`: linear in L. Softmax in at least float32.

    Attributes:
      reduction_norm: factory of the norm of the pooled map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      pool_size: side of the pooled map.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.LinearSpatialReductionAttention(num_heads=2, pool_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['kv', 'norm', 'proj', 'q', 'sr']
    """

    reduction_norm: Callable[..., nn.Module] | None = None
    pool_size: int = 7
    qkv_bias: bool = True

    # Averages have weights of sum 1, so a scale and a shift pass through them.
    reads: ClassVar[tuple[str, ...]] = ("q", "sr")
    parts: ClassVar[Mapping[str, Part]] = {"reduction_norm": REDUCTION_NORM}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.reduction_norm is None:
            return []
        return [FoldSite("norm", self.reduction_norm(parent=None), writer="sr")]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the smaller map is one if any that it is made of is.
          train: passed to `reduction_norm` and `qk_norm`.

        Raises:
          UserError: D does not split into heads.
        """
        width = self.qkv_features or x.shape[-1]
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        q = Dense(width, name="q", **dense)(x)
        r, mask = self._reduce(only_valid(x, mask), mask, width, train)
        k, v = SplitDense(2, width, name="kv", **dense)(r)
        q, k = normalized_maps(self, q, k, mask, train)
        o = softmax_over_maps(q, k, v, self.num_heads, mask=mask)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)

    def _reduce(self, x: jax.Array, mask: jax.Array | None, width: int, train: bool):
        """The smaller map [B, s, s, width] and its mask."""
        small, mask = pooled_valid(x, self.pool_size, mask)
        init = nn.initializers.normal(math.sqrt(2 / width))
        dense = Dense(width, name="sr", **{**dense_of(self), "kernel_init": init})
        norm, r = reduction_norm_of(self), dense(small.astype(x.dtype))
        r = norm(r, mask=mask, train=train)
        return gelu(r), mask
