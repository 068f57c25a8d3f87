"""Norms over channels or positions of one example, alone or beside a BatchNorm."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.collections import BATCH_STATS, INTERMEDIATES
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError, one_of
from normjax.core.moments import align_mask, at_least_float32, masked_moments
from normjax.norms.base import (
    NORMS,
    affine_parameters,
    apply_affine,
)
from normjax.norms.batch import BatchNorm
from normjax.norms.composite import AroundBatchNorm
from normjax.norms.layer import layer_normalize
from normjax.norms.pooled import Pool, pool_normalize

LAYOUTS = ("seq", "grid")


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
      mask: leading or all dims of x; True feeds the moments.

    Returns:
      [B, ..., C] in at least float32.
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


def instance_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias per example and channel.

    Moments over the valid positions (Ulyanov et al., 2016); the group normalisation of
    C groups, without its view.

    Args:
      x: [B, ..., C].  scale, bias: [C], or None for none.
      mask: leading or all dims of x; True feeds the moments.

    Returns:
      [B, ..., C] in at least float32.
    """
    pool = Pool(tuple(range(1, x.ndim - 1)))
    return pool_normalize(x, scale, bias, pool=pool, mask=mask, epsilon=epsilon)[0]


@NORMS.register("instance_norm", "mask", *LAYOUTS)
class InstanceNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias (Ulyanov et al., 2016).

    Moments per example and channel over the positions that `mask` leaves, in at least
    float32; every position is normalised. No state, evaluation as training.

    Attributes:
      epsilon: added to the variance.  use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones
    bias_init: Initializer | float = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` as in BatchNorm, `train` unused."""
        del train
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        y = self.normalize(x, affine, mask)
        return y.astype(result_dtype(x, *affine, dtype=self.dtype))

    @nn.nowrap
    def normalize(
        self,
        x: jax.Array,
        affine: tuple[jax.Array | None, jax.Array | None],
        mask: jax.Array | None,
    ) -> jax.Array:
        """The output before its last cast."""
        return instance_normalize(x, *affine, mask=mask, epsilon=self.epsilon)


@NORMS.register("group_norm", "mask", *LAYOUTS)
class GroupNorm(InstanceNorm):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias (Wu & He, 2018).

    Moments per example over the C / num_groups channels of a group and the positions
    that `mask` leaves. No state, evaluation as training.

    Attributes:
      num_groups: divides C.
      per_token: moments over the channels of one position only, as language models
        (and the PowerNorm repository) have it; `mask` then changes nothing and no
        position sees another.
      Others: as in InstanceNorm.
    """

    num_groups: int = 32
    per_token: bool = False

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


class EstimatedBatchNorm(BatchNorm):
    """BatchNorm by running statistics in training too (Qiao et al., 2019).

    With speed s and the old running mean m, variance v:

        m' = (1 - s) m + s mean(x),  v' = (1 - s) v + s mean((x - m)**2)
        y = (x - m') / sqrt(v' + epsilon) * scale + bias

    m' and v' are constants for the gradient, so a batch of one or two examples will do.
    s is `batch_stats/speed`, 1 - momentum at first; a training loop may write it, as
    the authors do with the schedule of the learning rate. `unbiased_running_var` is
    without effect. Attributes as in BatchNorm.
    """

    def normalize(self, x, mask, train):
        """The output before its last cast, and the dtype to cast it to."""
        running = self.running_statistics(x.shape[-1], ("mean", "var"))
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        speed = self.variable(
            BATCH_STATS, "speed", jnp.full, (), 1 - self.momentum, dtype
        )
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        if train:
            axes = tuple(range(x.ndim - 1))
            moments = masked_moments(
                jax.lax.stop_gradient(x),
                axes,
                mask=mask,
                axis_name=None if self.is_initializing() else self.axis_name,
            )
            mean, var, count = (jnp.squeeze(m, axes) for m in moments)
            for name, value in (("mean", mean), ("var", var)):
                self.sow(INTERMEDIATES, name, value)
            around = var + jnp.square(mean - running["mean"].value)
            decay = jnp.where(count > 0, 1 - speed.value, 1.0)
            self.move(running, {"mean": mean, "var": around}, decay)
        y = self.running_output(x, affine, running)
        return y, result_dtype(x, *affine, dtype=self.dtype)


STATISTICS = {"batch": BatchNorm, "estimate": EstimatedBatchNorm}


@NORMS.register("batch_channel_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class BatchChannelNorm(AroundBatchNorm):
    """y = GN(BN(x)), gain and bias of GN one a group (Qiao et al., 2019).

    BN with scale and bias per channel, then group normalisation over the channels of a
    group and the valid positions of an example. Parameters `batch_norm/{scale,bias}`
    [C] and `scale`, `bias` [num_groups]; state `batch_stats/batch_norm`.

    Attributes:
      num_groups: divides C.
      statistics: "batch" for an ordinary BatchNorm, "estimate" for running statistics
        in training too (micro-batches; see EstimatedBatchNorm).
      epsilon, use_scale, use_bias, param_dtype, scale_init, bias_init: of both norms.
      Others: as in BatchNorm.
    """

    num_groups: int = 32
    statistics: str = "batch"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` and `train` as in BatchNorm.

        Raises:
          UserError: unknown `statistics`, or C is no multiple of `num_groups`.
        """
        if self.statistics not in STATISTICS:
            raise UserError(one_of("statistics", self.statistics, STATISTICS))
        affine = affine_parameters(self, self.num_groups, use_bias=self.use_bias)
        y = group_normalize(
            self.batch_norm(x, mask, train, STATISTICS[self.statistics]),
            *affine,
            num_groups=self.num_groups,
            mask=mask,
            epsilon=self.epsilon,
        )
        return self.finish(y, x)


@NORMS.register("ibn_a", "batch_stats", "mask", "axis_name", *LAYOUTS)
class IBNa(AroundBatchNorm):
    """InstanceNorm on the first channels, BatchNorm on the others (Pan et al., 2018).

    The first norm of a residual block in all stages but the last. Parameters and state
    under `instance_norm` (first floor(C * ratio) channels) and `batch_norm`.

    Attributes:
      ratio: share of the channels with instance norm, between 0 and 1.
      epsilon, use_scale, use_bias, param_dtype, scale_init, bias_init: of both norms.
      Others: as in BatchNorm.
    """

    ratio: float = 0.5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` and `train` as in BatchNorm.

        Raises:
          UserError: `ratio` leaves one of the two without a channel.
        """
        channels = x.shape[-1]
        instance = int(channels * self.ratio)
        if not 0 < instance < channels:
            raise UserError(f"ibn_a: ratio {self.ratio} of {channels} channels")
        masks = [mask, mask]
        if mask is not None and align_mask(mask, x).shape[-1] == channels:
            masks = [mask[..., :instance], mask[..., instance:]]
        per_example = InstanceNorm(
            epsilon=self.epsilon,
            use_scale=self.use_scale,
            use_bias=self.use_bias,
            dtype=at_least_float32(x).dtype,
            param_dtype=self.param_dtype,
            scale_init=self.scale_init,
            bias_init=self.bias_init,
            name="instance_norm",
        )
        y = [
            per_example(x[..., :instance], mask=masks[0]),
            self.batch_norm(x[..., instance:], masks[1], train),
        ]
        return self.finish(jnp.concatenate(y, -1), x)


@NORMS.register("ibn_b", "mask", *LAYOUTS)
class IBNb(InstanceNorm):
    """InstanceNorm with affine, after the residual addition (Pan et al., 2018).

    IBN-b is a placement: blocks keep BatchNorm inside, and in the first two stages the
    sum of stream and branch is normalised by this norm before the activation, as is the
    output of the stem. It computes what `instance_norm` does; attributes as there.
    """
