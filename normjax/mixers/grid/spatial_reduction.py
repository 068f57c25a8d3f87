"""Attention to a map reduced by a strided convolution (PVT)."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import NORMS, Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of, normalized_maps, own_core

REDUCTION_NORM = Part(NORMS, needs=frozenset({"grid"}))


class ReductionNorm(nn.Module):
    """LayerNorm over the channels, called as a norm is; the default of reductions.

    Attributes: as in nn.LayerNorm.
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> same. `mask` and `train` are unused: one rule per position."""
        del mask, train
        norm = nn.LayerNorm(
            self.epsilon, self.dtype, self.param_dtype, use_fast_variance=False
        )
        nn.share_scope(self, norm)
        return norm(x)


def reduction_norm_of(module: Any) -> nn.Module:
    """The norm of the smaller map of a mixer with `reduction_norm`."""
    return norm_of(module, module.reduction_norm)


def norm_of(module: Any, norm: Spec | None, name: str = "norm") -> nn.Module:
    """A norm inside a mixer of maps; None: LayerNorm with epsilon 1e-5."""
    usual = functools.partial(ReductionNorm, param_dtype=module.param_dtype)
    make = usual if norm is None else NORMS.factory(norm)
    return make(name=name, dtype=module.dtype)


def reduced_map(
    module: Any, x: jax.Array, mask: jax.Array | None, width: int, train: bool
) -> tuple[jax.Array, jax.Array | None]:
    """norm(conv_RxR(x)) [B, H / R, W / R, width] with stride R, and its mask.

    Args:
      module: with `sr_ratio`, R, and `reduction_norm`; gets `sr` and `norm`.
      x: [B, H, W, C], 0 where the mask [B, H, W] is False.

    Raises:
      UserError: a grid that does not reduce.
    """
    side, (rows, columns) = module.sr_ratio, x.shape[1:3]
    if side < 1 or rows % side or columns % side:
        raise UserError(
            f"a grid of {rows}x{columns} does not reduce by {side} (sr_ratio)"
        )
    init = nn.initializers.normal(math.sqrt(2 / (side * side * width)))
    arguments = {**dense_of(module), "kernel_init": init}
    conv = nn.Conv(width, (side, side), side, "VALID", name="sr", **arguments)
    if mask is not None:
        cells = (x.shape[0], rows // side, side, columns // side, side)
        mask = jnp.any(mask.reshape(cells), (2, 4))
    return reduction_norm_of(module)(conv(x), mask=mask, train=train), mask


@MIXERS.register("spatial_reduction", "grid", "mask")
class SpatialReductionAttention(Mixer):
    """Attention to a strided convolution of the map (PVT; Wang et al., 2021).

    By default softmax,

        r = norm(conv_RxR(x)),  softmax(q(x) k(r)^T / sqrt(K)) v(r)

    per head, then a projection. O(L**2 D / R**2) multiply-adds with R = `sr_ratio`.
    Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      reduction_norm: factory of the norm of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      sr_ratio: size and stride of the convolution; at 1 there is none and no norm.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SpatialReductionAttention(num_heads=2, sr_ratio=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["sr"]["kernel"].shape
      ((1, 4, 4, 8), (2, 2, 8, 8))
    """

    core: Spec = "softmax"
    reduction_norm: Callable[..., nn.Module] | None = None
    sr_ratio: int = 1
    qkv_bias: bool = True

    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
        "reduction_norm": REDUCTION_NORM,
    }

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the layers that read the input."""
        return ("q", "kv" if self.sr_ratio == 1 else "sr")

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.sr_ratio == 1 or self.reduction_norm is None:
            return []
        norm = self.reduction_norm(parent=None)
        return [FoldSite("norm", norm, readers=("kv",))]

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
          UserError: a grid that does not reduce, initialised for another grid, or D
            does not split into heads.
        """
        width, core = self.qkv_features or x.shape[-1], own_core(self)
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        q = Dense(width, name="q", **dense)(x)
        r = only_valid(x, mask)
        if self.sr_ratio > 1:
            r, mask = reduced_map(self, r, mask, width, train)
        k, v = SplitDense(2, width, name="kv", **dense)(r)
        q, k = normalized_maps(self, q, k, mask, train)
        o = core(q, k, v, mask=mask)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)


@MIXERS.register("spatial_reduction_sla", "grid", "mask")
class SpatialReductionSimplifiedLinearAttention(SpatialReductionAttention):
    """`sla` with keys and values from a reduced map (SLAB-PVT; Guo et al., 2024).

    The table of positions is that of the reduced map. For the depthwise convolution v
    is stretched back along the flattened positions; the published models do not reduce
    (R = 1). O(L K D) multiply-adds.

    Attributes:
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      reduction_norm: factory of the norm of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      sr_ratio: size and stride of the convolution; at 1 there is none and no norm.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("spatial_reduction_sla", num_heads=2, sr_ratio=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.SpatialReductionSimplifiedLinearAttention
      True
      >>> y.shape, variables["params"]["q"]["kernel"].shape
      ((1, 4, 4, 8), (8, 8))
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "sla"  # pyright: ignore[reportIncompatibleVariableOverride]


@MIXERS.register("spatial_reduction_focused_linear", "grid", "mask")
class SpatialReductionFocusedLinearAttention(SpatialReductionAttention):
    """`focused_linear` to a reduced map (FLatten-PVT; Han et al., 2023).

    The table of positions is that of the reduced map. For the depthwise convolution v
    is stretched back along the flattened positions; the published models do not reduce
    (R = 1). O(L K D) multiply-adds.

    Attributes:
      focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      reduction_norm: factory of the norm of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      sr_ratio: size and stride of the convolution; at 1 there is none and no norm.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("spatial_reduction_focused_linear", num_heads=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.SpatialReductionFocusedLinearAttention
      True
      >>> y.shape, variables["params"]["q"]["kernel"].shape
      ((1, 4, 4, 8), (8, 8))
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "focused_linear"  # pyright: ignore[reportIncompatibleVariableOverride]
