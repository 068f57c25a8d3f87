"""One attention map for each group of channels (ULSAM)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.core.registry import NORMS, Part, Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, norm_of
from normjax.mixers.ops.masks import only_valid


@MIXERS.register("ulsam", "grid", "mask")
class UltraLightweightSubspaceAttention(nn.Module):
    """x times one plus an attention map for each group of channels (ULSAM).

    For each of `num_groups` groups of channels, with a scale s and shift b per channel,

        h = maxpool3x3(relu(norm(s x + b)))
        m = softmax over all positions of relu(norm(w . h + c))        y = x + m x

    (Saini et al., 2020, with the norm and relu of the released code after w, which the
    paper has not). A gate for convolutional networks, in the place of a block or behind
    one: near the identity on large maps, where m is small. O(L C) multiply-adds;
    softmax in at least float32.

    Attributes:
      num_groups: groups of channels, each with one map.
      norm: of both norms, of C channels and of one channel a group: a key of the norms,
        a dict or a factory. A model gives its own. One over the channels of a position
        leaves nothing of a single group.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.UltraLightweightSubspaceAttention(num_groups=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, sorted(variables)
      ((1, 4, 4, 8), ['batch_stats', 'params'])
    """

    num_groups: int = 4
    norm: Spec = "batch_norm"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    ranges: ClassVar[Mapping[str, Range]] = {"num_groups": POSITIVE}
    # The input itself goes on.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    parts: ClassVar[Mapping[str, Part]] = {"norm": REDUCTION_NORM}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms inside; paths are those in the mixer."""
        norm, why = NORMS.factory(self.norm), "a rectifier follows, no linear layer"
        names = ("norm", "map_norm")
        return [FoldSite(name, norm(parent=None), obstacle=why) for name in names]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions are no part of the maps.
          train: passed to the norms.

        Raises:
          UserError: C is no multiple of `num_groups`.
        """
        channels, groups = x.shape[-1], self.num_groups
        if channels % groups:
            raise UserError(
                f"mixer 'ulsam': {channels} channels do not split into {groups} groups "
                "(num_groups)"
            )
        x, scale, shift, kernel, bias = promote_dtype(
            x, *self._parameters(channels), dtype=self.dtype
        )
        seen = only_valid(x, mask)
        h = seen * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
        h = norm_of(self, self.norm)(h, mask=mask, train=train)
        # Behind relu, so that zeros around the map and at padding change no maximum.
        h = only_valid(jax.nn.relu(h), mask)
        h = nn.max_pool(h, (3, 3), padding="SAME")
        h = (h * kernel.reshape(1, 1, 1, -1)).reshape(*h.shape[:3], groups, -1)
        h = jnp.sum(at_least_float32(h), -1).astype(h.dtype) + bias.reshape(1, 1, 1, -1)
        h = norm_of(self, self.norm, "map_norm")(h, mask=mask, train=train)
        h = at_least_float32(jax.nn.relu(h))
        seen = None if mask is None else mask[..., None]
        maps = jax.nn.softmax(h, (1, 2), where=seen)
        maps = jnp.repeat(maps.astype(x.dtype), channels // groups, -1)
        return x + only_valid(maps, mask) * only_valid(x, mask)

    def _parameters(self, channels: int) -> list[jax.Array]:
        """Scale, shift and kernel [C], and bias [num_groups]."""
        inside, dtype = channels // self.num_groups, self.param_dtype

        def uniform(bound):
            def init(key, shape, dtype):
                return jax.random.uniform(key, shape, dtype, -bound, bound)

            return init

        shapes = {"scale": (channels, 1.0), "shift": (channels, 1.0)}
        shapes["map_kernel"] = (channels, inside**-0.5)
        shapes["map_bias"] = (self.num_groups, inside**-0.5)
        return [
            self.param(name, uniform(bound), (size,), dtype)
            for name, (size, bound) in shapes.items()
        ]
