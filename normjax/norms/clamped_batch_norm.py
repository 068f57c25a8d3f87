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

    BatchNorm with the variance clamped at `epsilon` where it is added there; mask,
    state and attributes as there. What the repository does by default, the statistics
    of the batch at evaluation too, recorded, is `use_running_average=False`.
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
