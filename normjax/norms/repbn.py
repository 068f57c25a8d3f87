"""RepBN: BatchNorm and a multiple of its input, of SLAB."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from normjax.core.collections import PARAMS
from normjax.core.moments import align_mask, at_least_float32
from normjax.core.registry import LAYOUTS
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    along_channels,
    as_initializer,
)
from normjax.norms.batch_norm import BatchNorm


@NORMS.register("repbn", "batch_stats", "mask", "axis_name", *LAYOUTS)
class RepBN(BatchNorm):
    """y = BN(x) + alpha * x, alpha one learned scalar (SLAB, Guo et al., 2024).

    At evaluation it is one affine map per channel, so it folds away as BN does.

    Attributes:
      alpha_init: 1 in the vision models, 0 in the language models (with scale_init and
        bias_init zeros there, so that the layer starts by giving 0).
      skip_masked: in training give x + alpha * x at masked positions, as the released
        language code does, instead of normalising them.
      Others: as in BatchNorm.
    """

    alpha_init: Initializer | float = nn.initializers.ones
    skip_masked: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [..., C] -> [..., C]; `mask` and `train` as in BatchNorm."""
        train = self.is_training(train)
        init = as_initializer(self.alpha_init)
        alpha = self.param("alpha", init, (1,), self.param_dtype)
        (y, dtype), wide = self.normalize(x, mask, train), at_least_float32(x)
        if self.skip_masked and mask is not None and train:
            y = jnp.where(align_mask(mask, x), y, wide)
        return (y + along_channels(alpha, x.ndim) * wide).astype(dtype)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """As BatchNorm's, with alpha added to the scale."""
        scale, shift, _ = super().inference_affine(variables)
        return InferenceAffine(scale + np.float64(variables[PARAMS]["alpha"]), shift)
