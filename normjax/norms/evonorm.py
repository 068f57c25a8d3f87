"""EvoNorm: normalization and activation found together by search (Liu et al., 2020)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dtypes import result_dtype
from normjax.core.moments import at_least_float32, masked_moments
from normjax.core.ranges import POSITIVE, Range
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

    var_i is the biased variance per example and channel over the valid positions (Liu
    et al., 2020).

    Args:
      x: [B, ..., C].  v, batch_var: [C].
      mask: leading or all dims of x; True feeds var_i.
      epsilon: added to both variances.

    Returns:
      [B, ..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[[1.0], [3.0]]])  # variance 1 in the example
      >>> y = norms.evonorm_b0(x, jnp.ones(1), batch_var=jnp.array([16.0]), epsilon=0.0)
      >>> print(y.ravel().round(3))  # 1 / max(4, 1 + 1), 3 / max(4, 3 + 1)
      [0.25 0.75]
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
    positions (Liu et al., 2020).

    Args:
      x: [B, ..., C].  v: [C].  num_groups: divides C.
      mask: leading or all dims of x; True feeds var.
      epsilon: added to the variance.

    Returns:
      [B, ..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[[1.0], [3.0]]])  # variance 1
      >>> y = norms.evonorm_s0(x, jnp.zeros(1), num_groups=1, epsilon=0.0)
      >>> print(y.ravel().round(3))  # x * sigmoid(0)
      [0.5 1.5]
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
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running average.
      epsilon: added to both variances; 1e-3 is the authors'.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.EvoNormB0()
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> variables = norm.init(jax.random.key(1), x, train=True)
      >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, sorted(variables["params"]), sorted(state["batch_stats"])
      ((2, 4, 4, 8), ['bias', 'scale', 'v'], ['var'])
      >>> bool((y < 1.01).all())  # no larger than 1 / v while scale is 1 and bias 0
      True
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

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.EvoNormS0(num_groups=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> y, variables = norm.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((2, 4, 4, 8), ['bias', 'scale', 'v'])
      >>> bool((y > -0.5).all())  # as silu has it: no activation is needed behind
      True
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

    ranges: ClassVar[Mapping[str, Range]] = {"num_groups": POSITIVE}

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
