"""BatchNorm followed by a norm over channels (BCN)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.collections import BATCH_STATS, INTERMEDIATES
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError, one_of
from normjax.core.moments import masked_moments
from normjax.core.ranges import POSITIVE, Range
from normjax.norms.base import NORMS, affine_parameters
from normjax.norms.batch_norm import BatchNorm
from normjax.norms.batch_norm_wrapper import BatchNormWrapper
from normjax.norms.group_norm import group_normalize


class EstimatedBatchNorm(BatchNorm):
    """BatchNorm by running statistics in training too (Qiao et al., 2019).

    With speed s and the old running mean m, variance v:

        m' = (1 - s) m + s mean(x),  v' = (1 - s) v + s mean((x - m)**2)
        y = (x - m') / sqrt(v' + epsilon) * scale + bias

    m' and v' are constants for the gradient, so a batch of one or two examples will do.
    s is `batch_stats/speed`, 1 - momentum at first; a training loop may write it, as
    the authors do with the schedule of the learning rate. `unbiased_running_var` is
    without effect.
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


@NORMS.register("batch_channel_norm", "batch_stats", "mask", "axis_name", "seq", "grid")
class BatchChannelNorm(BatchNormWrapper):
    """y = GN(BN(x)), gain and bias of GN one a group (Qiao et al., 2019).

    BN with scale and bias per channel, then group normalisation over the channels of a
    group and the valid positions of an example. Parameters `batch_norm/{scale,bias}`
    [C] and `scale`, `bias` [num_groups]; state `batch_stats/batch_norm`.

    Attributes:
      num_groups: divides C.
      statistics: "batch" for an ordinary BatchNorm, "estimate" for running statistics
        in training too (micro-batches; see EstimatedBatchNorm).
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages.
      epsilon: added to the variances.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn scale and bias, in both norms.
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters of both.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.BatchChannelNorm(num_groups=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> y, variables = norm.init_with_output(jax.random.key(1), x, train=True)
      >>> y.shape, variables["params"]["scale"].shape
      ((2, 4, 4, 8), (2,))
      >>> variables["params"]["batch_norm"]["scale"].shape
      (8,)
    """

    num_groups: int = 32
    statistics: str = "batch"

    ranges: ClassVar[Mapping[str, Range]] = {"num_groups": POSITIVE}

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
