"""BatchNorm with a clamped variance, as the PowerNorm repository has it.

It is kept to reproduce that repository; `batch_norm` with a mask is the clean form.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import BATCH_STATS
from normjax.core.moments import (
    masked_moments,
)
from normjax.core.registry import LAYOUTS
from normjax.norms.base import NORMS, InferenceAffine
from normjax.norms.batch_norm import BatchNorm


@NORMS.register("clamped_batch_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class ClampedBatchNorm(BatchNorm):
    """y = (x - mean) / sqrt(max(var, epsilon)) * scale + bias (Shen et al., 2020).

    BatchNorm with the variance clamped at `epsilon` where it is added there; mask and
    state as there. What the repository does by default, the statistics of the batch at
    evaluation too, recorded, is `use_running_average=False`.

    Attributes:
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages.
      epsilon: smallest variance that divides.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.ClampedBatchNorm(epsilon=4.0)
      >>> x = jnp.array([[1.0, 0.0], [3.0, 6.0]])  # variances 1 and 9
      >>> variables = norm.init(jax.random.key(0), x, train=True)
      >>> y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> print(y.round(3))
      [[-0.5 -1. ]
       [ 0.5  1. ]]
    """

    @nn.nowrap
    def regularize(self, var):
        """What x - mean is divided by the root of."""
        return jnp.maximum(var, self.epsilon)

    @nn.nowrap
    def batch_output(self, x, affine, mask, axis_name):
        """(y, mean, var, count); the gradient goes through the moments."""
        axes = tuple(range(x.ndim - 1))
        moments = masked_moments(x, axes, mask=mask, axis_name=axis_name)
        mean, var, count = (jnp.squeeze(m, axes) for m in moments)
        return self.by_statistics(x, affine, mean, var), mean, var, count

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """As BatchNorm's, with the clamped variance."""
        stats = variables[BATCH_STATS]
        # The parent adds epsilon again.
        var = np.maximum(np.float64(stats["var"]), self.epsilon) - self.epsilon
        return super().inference_affine(
            {**variables, BATCH_STATS: {**stats, "var": var}}
        )
