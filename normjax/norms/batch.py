"""Norms over the batch: per-channel statistics, running averages in `batch_stats`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.collections import BATCH_STATS, INTERMEDIATES, PARAMS
from normjax.core.errors import UserError
from normjax.core.moments import align_mask, at_least_float32, masked_moments
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    along_channels,
    as_initializer,
    learned_affine,
)

LAYOUTS = ("seq", "grid", "causal", "decode")


@NORMS.register("batch_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class BatchNorm(nn.Module):
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
        y, dtype = self.normalize(x, mask=mask, train=self.is_training(train))
        return y.astype(dtype)

    def is_training(self, train: bool | None) -> bool:
        """Whether to use the statistics of the batch."""
        if self.use_running_average is not None:
            return not self.use_running_average
        if train is None:
            raise UserError(f"{type(self).__name__} needs train=True or train=False")
        return train

    def normalize(
        self, x: jax.Array, *, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jnp.dtype]:
        """The output in at least float32, and the dtype to cast it to."""
        mean, var = self.statistics(x, mask=mask, train=train)
        normalized = (at_least_float32(x) - mean) * jax.lax.rsqrt(var + self.epsilon)
        return learned_affine(self, normalized, x, use_bias=self.use_bias)

    def statistics(
        self, x: jax.Array, *, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance to normalise with, each [1, ..., 1, C]."""
        channels, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        stats_dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running = {
            name: self.variable(BATCH_STATS, name, init, channels, stats_dtype)
            for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
        }
        if not train:
            return tuple(along_channels(v.value, x.ndim) for v in running.values())
        initializing = self.is_initializing()
        mean, var, count = masked_moments(
            x, axes, mask=mask, axis_name=None if initializing else self.axis_name
        )
        batch = {"mean": jnp.squeeze(mean, axes), "var": jnp.squeeze(var, axes)}
        for name, value in batch.items():
            self.sow(INTERMEDIATES, name, value)
        if not initializing:
            n = jnp.squeeze(count, axes)
            if self.unbiased_running_var:
                batch["var"] = batch["var"] * n / jnp.maximum(n - 1, 1)
            decay = jnp.where(n > 0, self.momentum, 1.0)
            for name, variable in running.items():
                new = decay * variable.value + (1 - decay) * batch[name]
                variable.value = new.astype(variable.value.dtype)
        return mean, var

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
        y, dtype = self.normalize(x, mask=mask, train=train)
        wide = at_least_float32(x)
        if self.skip_masked and mask is not None and train:
            y = jnp.where(align_mask(mask, x), y, wide)
        init = as_initializer(self.alpha_init)
        alpha = self.param("alpha", init, (1,), self.param_dtype)
        return (y + along_channels(alpha, x.ndim) * wide).astype(dtype)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """As BatchNorm's, with alpha added to the scale."""
        scale, shift = super().inference_affine(variables)
        return InferenceAffine(scale + np.float64(variables[PARAMS]["alpha"]), shift)
