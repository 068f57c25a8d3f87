"""Norms over the batch: per-channel statistics, running averages in `batch_stats`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.collections import BATCH_STATS, DEFERRED, INTERMEDIATES, PARAMS
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.registry import LAYOUTS
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    affine_parameters,
    along_channels,
    apply_affine,
)
from normjax.norms.pooled import Pool, pool_normalize


def batch_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias by the moments of the batch.

    Mean and biased variance per channel, over all other axes, of the positions that
    `mask` leaves (see `masked_moments`). The gradient goes through the moments; it is
    written by hand and keeps x and the moments, nothing else
    (Ioffe & Szegedy, 2015).

    Args:
      x: [..., C].  scale, bias: [C], or None for none.
      mask: leading or all dims of x; True is valid. None: all.
      epsilon: added to the variance.
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      (y [..., C], mean [C], var [C], count [C]) in at least float32. The moments carry
      no gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, mean, var, count = norms.batch_normalize(x, epsilon=0.0)
      >>> print(y.round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(mean, var, count)
      [ 2. 20.] [  1. 100.] [2. 2.]
    """
    axes = tuple(range(x.ndim - 1))
    y, *moments = pool_normalize(
        x, scale, bias, pool=Pool(axes, axis_name), mask=mask, epsilon=epsilon
    )
    mean, var, count = (jnp.squeeze(m, axes) for m in moments)
    return y, mean, var, count


def unbiased(var: jax.Array, count: jax.Array) -> jax.Array:
    """var * count / (count - 1), for a count of at least 2."""
    return var * count / jnp.maximum(count - 1, 1)


class BatchStatistics(nn.Module):
    """Attributes of norms with running statistics, and how they keep them.

    Attributes: see BatchNorm.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased_running_var: bool = False
    axis_name: str | tuple[str, ...] | None = None
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones
    bias_init: Initializer | float = nn.initializers.zeros

    @property
    def reads_batch(self) -> bool:
        """Whether evaluation is by the statistics of the batch as well."""
        return self.use_running_average is False

    @staticmethod
    def tags_with(tags: frozenset[str], arguments: Mapping[str, Any]) -> frozenset[str]:
        """By the statistics of the batch at evaluation a position sees the others."""
        if arguments.get("use_running_average") is False:
            return tags - {"causal", "decode"}
        return tags

    def is_training(self, train: bool | None) -> bool:
        """Whether to use the statistics of the batch."""
        if self.use_running_average is not None:
            return not self.use_running_average
        if train is None:
            raise UserError(f"{type(self).__name__} needs train=True or train=False")
        return train

    def running_statistics(
        self, channels: int, names: tuple[str, ...]
    ) -> dict[str, nn.Variable]:
        """The variables `batch_stats/{mean,var}` [C]; a variance starts at 1."""
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        init = {"mean": jnp.zeros, "var": jnp.ones}
        return {
            name: self.variable(BATCH_STATS, name, init[name], (channels,), dtype)
            for name in names
        }

    def move(
        self,
        running: Mapping[str, nn.Variable],
        values: Mapping[str, jax.Array],
        decay: jax.Array,
    ) -> None:
        """running = decay * running + (1 - decay) * value; not while initialising."""
        if self.is_initializing():
            return
        for name, variable in running.items():
            new = decay * variable.value + (1 - decay) * values[name]
            variable.value = new.astype(variable.value.dtype)


@NORMS.register("batch_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class BatchNorm(BatchStatistics):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias (Ioffe & Szegedy, 2015).

    Per channel, over all other axes; `mask` says which positions feed the statistics,
    the output is normalised everywhere. Two-pass moments in at least float32, reduced
    as sums and counts. Reads and writes `batch_stats/{mean,var}` [C]; a batch without a
    valid position leaves them as they are.

    Under `jit` over a sharded batch the statistics are those of the global batch;
    leave `axis_name` None. Inside `shard_map` or `pmap` name the axis to synchronise,
    or leave None for statistics per device.

    Attributes:
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running average (PyTorch's is 1 - ours).
      epsilon: added to the variance.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does; the batch itself
        is always normalised with the biased variance.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.BatchNorm(momentum=0.5)
      >>> x = jnp.array([[0.0], [10.0], [99.0]])
      >>> mask = jnp.array([True, True, False])
      >>> variables = norm.init(jax.random.key(0), x, train=True)
      >>> y, state = norm.apply(
      ...     variables, x, mask=mask, train=True, mutable="batch_stats"
      ... )
      >>> print(y.ravel()[:2].round(3))
      [-1.  1.]
      >>> stats = state["batch_stats"]
      >>> print(stats["mean"], stats["var"].round(3))  # halfway to 5 and 25
      [2.5] [13.]
      >>> norm.apply({**variables, **state}, x, train=False).shape  # by the averages
      (3, 1)
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [..., C] -> [..., C].

        Args:
          mask: bool, leading or all dims of x, 1 where it broadcasts; True is valid.
          train: use and record the statistics of this batch. Must be given here or as
            `use_running_average`, so that it cannot be forgotten.
        """
        y, dtype = self.normalize(x, mask, self.is_training(train))
        return y.astype(dtype)

    def normalize(
        self, x: jax.Array, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Dtype]:
        """The output before its last cast, and the dtype to cast it to.

        Moves the running statistics when `train`.
        """
        running = self.running_statistics(x.shape[-1], ("mean", "var"))
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        dtype = result_dtype(x, *affine, dtype=self.dtype)
        if not train:
            return self.running_output(x, affine, running), dtype
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var, count = self.batch_output(x, affine, mask, axis_name)
        self.record(running, mean, var, count)
        return y, dtype

    @nn.nowrap
    def running_output(
        self,
        x: jax.Array,
        affine: tuple[jax.Array | None, jax.Array | None],
        running: Mapping[str, nn.Variable],
    ) -> jax.Array:
        """y by the running statistics."""
        return self.by_statistics(
            x, affine, running["mean"].value, running["var"].value
        )

    @nn.nowrap
    def by_statistics(
        self,
        x: jax.Array,
        affine: tuple[jax.Array | None, jax.Array | None],
        mean: jax.Array,
        var: jax.Array,
    ) -> jax.Array:
        """y by any statistics, constants or not.

        Args:
          affine: scale and bias.
          mean, var: [C], or more of the last dims of x, 1 where they broadcast.
        """
        mean, var = (along_channels(s, x.ndim) for s in (mean, var))
        root = jax.lax.rsqrt(self.regularize(var))
        return apply_affine((at_least_float32(x) - mean) * root, *affine)

    @nn.nowrap
    def regularize(self, var: jax.Array) -> jax.Array:
        """What x - mean is divided by the root of."""
        return var + self.epsilon

    @nn.nowrap
    def batch_output(
        self,
        x: jax.Array,
        affine: tuple[jax.Array | None, jax.Array | None],
        mask: jax.Array | None,
        axis_name: str | tuple[str, ...] | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(y, mean, var, count) of a training batch, as `batch_normalize`."""
        return batch_normalize(
            x, *affine, mask=mask, epsilon=self.epsilon, axis_name=axis_name
        )

    def record(
        self,
        running: Mapping[str, nn.Variable],
        mean: jax.Array,
        var: jax.Array,
        count: jax.Array,
    ) -> None:
        """Move the running statistics by those of a batch, [C] each."""
        for name, value in (("mean", mean), ("var", var)):
            self.sow(INTERMEDIATES, name, value)
        if self.is_mutable_collection(DEFERRED) and not self.is_initializing():
            moments = {"count": count, "mean": mean, "var": var}
            moments["momentum"] = jnp.asarray(self.momentum, mean.dtype)
            moments["unbiased"] = jnp.asarray(self.unbiased_running_var)
            self.sow(DEFERRED, "moments", moments)
            return
        if self.unbiased_running_var:
            var = unbiased(var, count)
        decay = jnp.where(count > 0, self.momentum, 1.0)
        self.move(running, {"mean": mean, "var": var}, decay)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """The per-channel affine map that this module is at evaluation.

        Args:
          variables: this module's own `{"params": ..., "batch_stats": ...}`.
        """
        stats = {k: np.float64(v) for k, v in variables[BATCH_STATS].items()}
        params = {k: np.float64(v) for k, v in variables.get(PARAMS, {}).items()}
        scale = params.get("scale", 1.0) / np.sqrt(stats["var"] + self.epsilon)
        return InferenceAffine(scale, params.get("bias", 0.0) - stats["mean"] * scale)
