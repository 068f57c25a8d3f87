"""EvoNorm: normalization and activation found together by search (Liu et al., 2020)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dtypes import result_dtype
from normjax.core.moments import at_least_float32, masked_moments
from normjax.norms.base import (
    NORMS,
    affine_parameters,
    along_channels,
    apply_affine,
    as_initializer,
)
from normjax.norms.batch_norm import BatchStatistics, unbiased
from normjax.norms.group_norm import grouped


def evonorm_b0(
    x: jax.Array,
    v: jax.Array,
    batch_var: jax.Array,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-3,
) -> jax.Array:
    """x / max(sqrt(batch_var + epsilon), v * x + sqrt(var_i + epsilon)).

    var_i is the biased variance per example and channel over the valid positions.

    Args:
      x: [B, ..., C].  v, batch_var: [C].
      mask: leading or all dims of x; True feeds var_i.

    Returns:
      [B, ..., C] in at least float32.
    """
    axes = tuple(range(1, x.ndim - 1))
    _, instance_var, _ = masked_moments(x, axes, mask=mask)
    x = at_least_float32(x)
    v, batch_var = along_channels(v, x.ndim), along_channels(batch_var, x.ndim)
    other = v * x + jnp.sqrt(instance_var + epsilon)
    return x / jnp.maximum(jnp.sqrt(batch_var + epsilon), other)


def evonorm_s0(
    x: jax.Array,
    v: jax.Array,
    *,
    num_groups: int,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """x * sigmoid(v * x) / sqrt(var + epsilon).

    var is the biased variance per example over the channels of a group and the valid
    positions.

    Args:
      x: [B, ..., C].  v: [C].
      mask: leading or all dims of x; True feeds var.

    Returns:
      [B, ..., C] in at least float32.
    """
    view, mask = grouped(at_least_float32(x), num_groups, mask)
    _, var, _ = masked_moments(view, (1, 3), mask=mask)
    gate = jax.nn.sigmoid(v.reshape(1, 1, num_groups, -1) * view)
    return (view * gate * jax.lax.rsqrt(var + epsilon)).reshape(x.shape)


@NORMS.register("evonorm_b0", "batch_stats", "mask", "axis_name", "seq", "grid")
class EvoNormB0(BatchStatistics):
    """y = scale * x / max(sqrt(var + eps), v * x + sqrt(var_i + eps)) + bias.

    var is the variance of the batch in training and its running average at evaluation,
    var_i that of the example at both; no mean is subtracted (Liu et al., 2020). The
    activation is included: put none behind it. Parameter `v` [C], state
    `batch_stats/var`. It is no affine map at evaluation and does not fold.

    Attributes:
      v_init: of `v`.
      Others: as in BatchNorm; the authors' epsilon is 1e-3.
    """

    epsilon: float = 1e-3
    v_init: Initializer | float = nn.initializers.ones

    activates: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` and `train` as in BatchNorm."""
        train = self.is_training(train)
        channels = x.shape[-1]
        running = self.running_statistics(channels, ("var",))
        affine = affine_parameters(self, channels, use_bias=self.use_bias)
        v = self.param("v", as_initializer(self.v_init), (channels,), self.param_dtype)
        var = running["var"].value
        if train:
            var = self._batch_var(x, mask, running)
        y = evonorm_b0(x, v, var, mask=mask, epsilon=self.epsilon)
        dtype = result_dtype(x, v, *affine, dtype=self.dtype)
        return apply_affine(y, *affine).astype(dtype)

    def _batch_var(self, x, mask, running):
        axes = tuple(range(x.ndim - 1))
        axis_name = None if self.is_initializing() else self.axis_name
        moments = masked_moments(x, axes, mask=mask, axis_name=axis_name)
        _, var, count = (jnp.squeeze(m, axes) for m in moments)
        kept = unbiased(var, count) if self.unbiased_running_var else var
        decay = jnp.where(count > 0, self.momentum, 1.0)
        self.move(running, {"var": kept}, decay)
        return var


@NORMS.register("evonorm_s0", "mask", "seq", "grid")
class EvoNormS0(nn.Module):
    """y = scale * x * sigmoid(v * x) / sqrt(var + epsilon) + bias (Liu et al., 2020).

    Variance per example over the channels of a group and the positions that `mask`
    leaves; no mean is subtracted. The activation is included: put none behind it. No
    state, evaluation as training. Parameter `v` [C].

    Attributes:
      num_groups: divides C.
      epsilon: added to the variance.  use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init, v_init: of the parameters.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones
    bias_init: Initializer | float = nn.initializers.zeros
    v_init: Initializer | float = nn.initializers.ones

    activates: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` as in BatchNorm, `train` unused."""
        del train
        channels = x.shape[-1]
        affine = affine_parameters(self, channels, use_bias=self.use_bias)
        v = self.param("v", as_initializer(self.v_init), (channels,), self.param_dtype)
        y = evonorm_s0(
            x, v, num_groups=self.num_groups, mask=mask, epsilon=self.epsilon
        )
        dtype = result_dtype(x, v, *affine, dtype=self.dtype)
        return apply_affine(y, *affine).astype(dtype)
