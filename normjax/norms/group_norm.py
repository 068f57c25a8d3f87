"""GroupNorm: moments of one example over the channels of a group."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.errors import UserError
from normjax.core.moments import align_mask
from normjax.core.ranges import POSITIVE, Range
from normjax.norms.base import NORMS, apply_affine
from normjax.norms.instance_norm import InstanceNorm
from normjax.norms.layer_norm import layer_normalize
from normjax.norms.pooled import Pool, pool_normalize


def grouped(
    x: jax.Array, num_groups: int, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """x [B, ..., C] as [B, P, G, C / G] and its mask likewise, P all positions.

    Raises:
      UserError: C is no multiple of `num_groups`.
    """
    group_of_channels(x.shape[-1], num_groups)
    shape = (x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
    if mask is not None:
        mask = jnp.broadcast_to(align_mask(mask, x), x.shape).reshape(shape)
    return x.reshape(shape), mask


@dataclasses.dataclass(frozen=True)
class GroupPool(Pool):
    """Per example, the C / G channels of a group. Pooled arrays are [B, 1, ..., 1, G].

    Attributes:
      axes: all dims of x between the first and the last.
    """

    num_groups: int = 1

    def combine(self, partial):
        channels = partial.shape[-1] // self.num_groups
        split = partial.reshape(*partial.shape[:-1], self.num_groups, channels)
        return super().combine(jnp.sum(split, -1))

    def spread(self, pooled, x):
        return jnp.repeat(pooled, x.shape[-1] // self.num_groups, -1)


def group_of_channels(channels: int, num_groups: int) -> np.ndarray:
    """[C] the group of every channel.

    Raises:
      UserError: C is no multiple of `num_groups`.
    """
    if num_groups < 1 or channels % num_groups:
        raise UserError(f"{channels} channels do not split into {num_groups} groups")
    return np.arange(channels) // (channels // num_groups)


def group_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int,
    mask: jax.Array | None = None,
    per_token: bool = False,
    epsilon: float = 1e-5,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias per example and channel group.

    Moments over the C / G channels of a group and the valid positions, or with
    `per_token` over the channels alone (Wu & He, 2018). Gradient as in
    `pool_normalize`.

    Args:
      x: [B, ..., C].
      scale, bias: [C], or [num_groups] for one a group; None for none.
      num_groups: divides C.
      mask: leading or all dims of x; True feeds the moments.
      per_token: moments over the channels alone.  epsilon: added to the variance.

    Returns:
      [B, ..., C] in at least float32.

    Raises:
      UserError: C is no multiple of `num_groups`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> scale = jnp.array([1.0, 2.0])  # one a group
      >>> print(norms.group_normalize(x, scale, num_groups=2, epsilon=0.0).round(3))
      [[-1.  1. -2.  2.]]
    """
    group = group_of_channels(x.shape[-1], num_groups)
    per_channel = (
        v if v is None or v.shape[-1] == len(group) else v[group] for v in (scale, bias)
    )
    if per_token:
        view, _ = grouped(x, num_groups, None)
        normalized = layer_normalize(view, epsilon=epsilon).reshape(x.shape)
        return apply_affine(normalized, *per_channel)
    pool = GroupPool(tuple(range(1, x.ndim - 1)), None, num_groups)
    return pool_normalize(x, *per_channel, pool=pool, mask=mask, epsilon=epsilon)[0]


@NORMS.register("group_norm", "mask", "seq", "grid")
class GroupNorm(InstanceNorm):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias (Wu & He, 2018).

    Moments per example over the C / num_groups channels of a group and the positions
    that `mask` leaves. No state, evaluation as training.

    Attributes:
      num_groups: divides C.
      per_token: moments over the channels of one position only, as language models
        (and the PowerNorm repository) have it; `mask` then changes nothing and no
        position sees another.
      epsilon: added to the variance.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.GroupNorm(num_groups=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> y, variables = norm.init_with_output(jax.random.key(1), x)
      >>> mean = y[..., :4].mean((1, 2, 3))  # of the first group, per example
      >>> y.shape, variables["params"]["scale"].shape, bool((abs(mean) < 1e-5).all())
      ((2, 4, 4, 8), (8,), True)
    """

    num_groups: int = 32
    per_token: bool = False

    ranges: ClassVar[Mapping[str, Range]] = {"num_groups": POSITIVE}

    @staticmethod
    def tags_with(tags: frozenset[str], arguments: Mapping[str, Any]) -> frozenset[str]:
        """With `per_token` no position sees another."""
        return tags | {"causal", "decode"} if arguments.get("per_token") else tags

    @nn.nowrap
    def normalize(self, x, affine, mask):
        """The output before its last cast."""
        return group_normalize(
            x,
            *affine,
            num_groups=self.num_groups,
            mask=mask,
            per_token=self.per_token,
            epsilon=self.epsilon,
        )
