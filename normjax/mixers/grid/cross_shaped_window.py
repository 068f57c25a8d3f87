"""Attention inside crosses of stripes of a feature map (CSwin)."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import merge, partition
from normjax.mixers.steps import (
    core_of,
    dense_of,
    depthwise_layer,
    normalized_maps,
    project,
    types_of,
)


class Stripes(nn.Module):
    """A core inside stripes, plus a 3x3 depthwise convolution of v (LePE).

    The convolution sees zeros beyond the stripe (Dong et al., 2022).

    Attributes:
      core: factory of the core, which shares this scope.
      stripe: height and width.
      dtype: of the computation.  param_dtype: of the parameters.
    """

    core: Callable[..., nn.Module]
    stripe: tuple[int, int]
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """q, k, v: [B, H, W, D] -> same.  mask: bool [B, H, W]."""
        core, grid = self.core(), q.shape[1:3]
        nn.share_scope(self, core)
        q, k, v = (partition(t, self.stripe) for t in (q, k, v))
        mask = None if mask is None else partition(mask, self.stripe)
        v = only_valid(v, mask)
        lepe = depthwise_layer(self, "lepe", v, (3, 3, v.shape[-1]))
        return merge(core(q, k, v, mask=mask) + lepe, grid)


@MIXERS.register("cross_shaped_window", "grid", "mask")
class CrossShapedWindowAttention(Mixer):
    """Attention inside crosses of stripes (CSwin; Dong et al., 2022).

    Half of the channels and heads attends inside vertical stripes over all rows, half
    inside horizontal ones over all columns. A grid no larger than `split_size` is one
    stripe with all channels and heads. By default

        softmax(q k^T / sqrt(K)) v + conv3x3(v)

    per head and stripe, then a projection. O(L**1.5 s D) multiply-adds on a square map
    with s = `split_size`. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      split_size: width of a stripe.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.CrossShapedWindowAttention(num_heads=2, split_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['horizontal', 'proj', 'qkv', 'vertical']
    """

    core: Spec = "softmax"
    split_size: int = 7
    qkv_bias: bool = True

    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of positions fixes the size of a stripe.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: stripes that do not cover the grid, an odd number of heads or
            channels, initialised for other stripes, or D does not split into heads.
        """
        q, k, v = project(self, x)
        q, k = normalized_maps(self, q, k, mask, train)
        height, width = x.shape[1:3]
        if max(height, width) <= self.split_size:
            branches = {"whole": (height, width)}
        else:
            branches = {
                "vertical": (height, self.split_size),
                "horizontal": (self.split_size, width),
            }
        count, dim = len(branches), q.shape[-1]
        if self.num_heads % count or dim % count:
            raise UserError(
                f"{self.num_heads} heads of width {dim} do not split into vertical "
                "and horizontal stripes: both numbers must be even"
            )
        core = core_of(self, num_heads=self.num_heads // count)
        split = (jnp.split(t, count, -1) for t in (q, k, v))
        outputs = [
            Stripes(core, branches[name], **types_of(self), name=name)(q, k, v, mask)
            for name, q, k, v in zip(branches, *split, strict=True)
        ]
        o = jnp.concatenate(outputs, -1)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)


@MIXERS.register("cross_shaped_window_sla", "grid", "mask")
class CrossShapedWindowSimplifiedLinearAttention(CrossShapedWindowAttention):
    """`sla` inside crosses of stripes (SLAB-CSwin; Guo et al., 2024).

    The core of `sla` per stripe, plus conv3x3(v). The published models use it where
    the map is one stripe. O(L K D) multiply-adds.

    Attributes:
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      split_size: width of a stripe.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("cross_shaped_window_sla", num_heads=2, split_size=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.CrossShapedWindowSimplifiedLinearAttention
      True
      >>> y.shape, variables["params"]["qkv"]["kernel"].shape
      ((1, 4, 4, 8), (8, 24))
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "sla"  # pyright: ignore[reportIncompatibleVariableOverride]


@MIXERS.register("cross_shaped_window_focused_linear", "grid", "mask")
class CrossShapedWindowFocusedLinearAttention(CrossShapedWindowAttention):
    """`focused_linear` inside crosses of stripes (FLatten-CSwin; Han et al., 2023).

    The core of `focused_linear` per stripe, plus conv3x3(v). The released code runs
    with one stripe only. O(L K D) multiply-adds.

    Attributes:
      focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      split_size: width of a stripe.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("cross_shaped_window_focused_linear", num_heads=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.CrossShapedWindowFocusedLinearAttention
      True
      >>> y.shape, variables["params"]["qkv"]["kernel"].shape
      ((1, 4, 4, 8), (8, 24))
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "focused_linear"  # pyright: ignore[reportIncompatibleVariableOverride]
