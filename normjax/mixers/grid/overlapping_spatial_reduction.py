"""Attention to a map reduced by overlapping depthwise convolutions (SVIPTR)."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from normjax.core.dense import Dense, SplitDense
from normjax.core.depthwise import strided_depthwise_conv
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, norm_of
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import (
    dense_of,
    depthwise_layer,
    normalized_maps,
    own_core,
)

_he = nn.initializers.variance_scaling(
    2.0, "fan_out", "normal", in_axis=(), out_axis=(), batch_axis=2
)


@MIXERS.register("overlapping_spatial_reduction", "grid", "mask")
class OverlappingSpatialReductionAttention(Mixer):
    """Attention to a map reduced by an overlapping convolution, OSRA (SVIPTR).

        r = norm(s * gelu(norm(conv(x)))), conv depthwise, (R + 3) x (R + 3), stride R
        r' = r + 3x3 depthwise convolution of r
        y = softmax(q(x) k(r')^T / sqrt(K)) v(r')

    per head, without a projection of the output (Cheng et al., 2024; as of TransXNet).
    At R = 1, r = x. O(L**2 D / R**2) multiply-adds with R = `sr_ratio`. Softmax in at
    least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "sla", ...), a dict with
        `name` and arguments, or a factory.
      reduction_norm: factory of the norms of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own; published: batch_norm.
      sr_ratio: R; at 1 there is neither convolution nor norm.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values: None or that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("overlapping_spatial_reduction", num_heads=2, sr_ratio=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 5, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer().init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["sr_kernel"].shape
      ((1, 4, 5, 8), (5, 5, 8))
    """

    core: Spec = "softmax"
    reduction_norm: Callable[..., nn.Module] | None = None
    sr_ratio: int = 1
    qkv_bias: bool = True

    # Convolutions read the input, with zeros around the map; the heads are the output.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
        "reduction_norm": REDUCTION_NORM,
    }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms inside; paths are those in the mixer."""
        if self.sr_ratio == 1 or self.reduction_norm is None:
            return []
        norm = self.reduction_norm(parent=None)
        why = "no Dense or Conv stands next to it, but depthwise convolutions"
        return [FoldSite(name, norm, obstacle=why) for name in ("norm", "norm_out")]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of the core fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the smaller map is one if any that it is made of is.
          train: passed to `reduction_norm` and `qk_norm`.

        Raises:
          UserError: D does not split into heads, or is not the width of x.
        """
        width, core = self.qkv_features or x.shape[-1], own_core(self)
        if width != x.shape[-1]:
            raise UserError(
                "mixer 'overlapping_spatial_reduction' projects no output: "
                f"qkv_features {width} must be the width {x.shape[-1]} of the map"
            )
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        q = Dense(width, name="q", **dense)(x)
        r, mask = self._reduce(only_valid(x, mask), mask, train)
        r = only_valid(r, mask)
        r = r + depthwise_layer(self, "local", r, (3, 3, r.shape[-1]))
        k, v = SplitDense(2, width, name="kv", **dense)(r)
        q, k = normalized_maps(self, q, k, mask, train)
        return core(q, k, v, mask=mask)

    def _reduce(self, x: jax.Array, mask: jax.Array | None, train: bool):
        """The smaller map and its mask."""
        stride, channels = self.sr_ratio, x.shape[-1]
        if stride == 1:
            return x, mask
        shape = (stride + 3, stride + 3, channels)
        kernel = self.param("sr_kernel", _he, shape, self.param_dtype)
        one = nn.initializers.normal(2**0.5)  # He for a kernel of one number
        scale = self.param("sr_scale", one, (channels,), self.param_dtype)
        x, kernel, scale = promote_dtype(x, kernel, scale, dtype=self.dtype)
        if mask is not None:
            ones = jnp.ones((*shape[:2], 1), jnp.float32)
            counted = mask[..., None].astype(jnp.float32)
            mask = strided_depthwise_conv(counted, ones, stride)[..., 0] > 0.5
        r = strided_depthwise_conv(x, kernel, stride)
        r = norm_of(self, self.reduction_norm)(r, mask=mask, train=train)
        r = gelu(r) * scale.reshape(1, 1, 1, -1)
        norm = norm_of(self, self.reduction_norm, "norm_out")
        return norm(r, mask=mask, train=train), mask
