"""BatchNorm over filled padding, as the PowerNorm repository has it.

It is kept to reproduce that repository; `batch_norm` with a mask is the clean form.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.moments import align_mask, at_least_float32, masked_mean
from normjax.core.registry import LAYOUTS
from normjax.norms.base import NORMS
from normjax.norms.batch_norm_wrapper import BatchNormWrapper
from normjax.norms.rms_norm import rms_normalize


def fill_masked(
    x: jax.Array,
    mask: jax.Array | None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Masked positions overwritten by the mean of the valid ones, per channel.

    Args:
      x: [..., C].  mask: leading or all dims of x; True is valid.

    Returns:
      (x, whether a channel has a valid position: bool [1, ..., 1, C], None without a
      mask).
    """
    if mask is None:
        return x, None
    axes = tuple(range(x.ndim - 1))
    mean, count = masked_mean(x, axes, mask=mask, axis_name=axis_name)
    return jnp.where(align_mask(mask, x), x, mean), count > 0


@NORMS.register("filled_batch_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class FilledBatchNorm(BatchNormWrapper):
    """BN(fill(x / sqrt(mean_C(x**2) + token_epsilon))), BN over all positions.

    "Masked synchronised BatchNorm" of the PowerNorm repository (Shen et al., 2020):
    tokens are first divided by their root mean square, then padding is overwritten by
    the mean of the real tokens, at evaluation too, and counts in the statistics. The
    mean is that of the real tokens, the variance is too small by the share of padding.
    No affine map per channel at evaluation, so it does not fold.

    State and parameters are those of the BatchNorm inside, under `batch_norm`. A batch
    without a valid position leaves the state as it is.

    Attributes:
      token_scaling: divide by the root mean square first.
      token_epsilon: added inside that root.
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages; 0.95 in the repository.
      epsilon: added to the variance.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.FilledBatchNorm(token_scaling=False)
      >>> x = jnp.array([[[1.0], [3.0]], [[8.0], [50.0]]])
      >>> mask = jnp.array([[True, True], [True, False]])
      >>> variables = norm.init(jax.random.key(0), x, train=True)
      >>> y, _ = norm.apply(variables, x, mask=mask, train=True, mutable="batch_stats")
      >>> print(y.shape, y[1, 1])  # padding lies at the mean of the real tokens
      (2, 2, 1) [0.]
    """

    momentum: float = 0.95
    token_scaling: bool = True
    token_epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [..., C] -> [..., C]; `mask` is used at evaluation too."""
        wide = at_least_float32(x)
        if self.token_scaling:
            wide = rms_normalize(wide, epsilon=self.token_epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        filled, present = fill_masked(wide, mask, axis_name)
        return self.finish(self.batch_norm(filled, present, train), x)
