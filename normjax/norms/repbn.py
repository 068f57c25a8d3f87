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
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages.
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
      >>> norm = norms.RepBN(epsilon=0.0, alpha_init=0.5)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = norm.init(jax.random.key(0), x, train=True)
      >>> y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> print(y.ravel().round(3))  # -1 + 0.5 * 1, 1 + 0.5 * 3
      [-0.5  2.5]
      >>> norm.inference_affine(variables).scale.tolist()  # by the statistics 0 and 1
      [1.5]
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
