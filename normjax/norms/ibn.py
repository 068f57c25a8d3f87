"""IBN-Net: InstanceNorm beside BatchNorm, and behind the residual addition."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import align_mask, at_least_float32
from normjax.norms.base import NORMS
from normjax.norms.batch_norm_wrapper import BatchNormWrapper
from normjax.norms.instance_norm import InstanceNorm


@NORMS.register("ibn_a", "batch_stats", "mask", "axis_name", "seq", "grid")
class IBNa(BatchNormWrapper):
    """InstanceNorm on the first channels, BatchNorm on the others (Pan et al., 2018).

    The first norm of a residual block in all stages but the last. Parameters and state
    under `instance_norm` (first floor(C * ratio) channels) and `batch_norm`.

    Attributes:
      ratio: share of the channels with instance norm, between 0 and 1.
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages.
      epsilon: added to the variances.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over, of the BatchNorm.
      use_scale, use_bias: learn scale and bias, in both norms.
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters of both.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.IBNa(ratio=0.25)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> y, variables = norm.init_with_output(jax.random.key(1), x, train=True)
      >>> params = variables["params"]
      >>> y.shape, {name: params[name]["scale"].shape for name in sorted(params)}
      ((2, 4, 4, 8), {'batch_norm': (6,), 'instance_norm': (2,)})
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


@NORMS.register("ibn_b", "mask", "seq", "grid")
class IBNb(InstanceNorm):
    """InstanceNorm with affine, after the residual addition (Pan et al., 2018).

    IBN-b is a placement: blocks keep BatchNorm inside, and in the first two stages the
    sum of stream and branch is normalised by this norm before the activation, as is the
    output of the stem. It computes what `instance_norm` does:

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Attributes:
      epsilon: added to the variance.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.IBNb()
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])
      >>> y, _ = norm.init_with_output(jax.random.key(0), x)
      >>> print(y[..., 0].round(3))  # every example by itself
      [[-1.  1.]
       [-1.  1.]]
    """
