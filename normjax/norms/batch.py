"""Norms over the batch: per-channel statistics, running averages in `batch_stats`."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.collections import BATCH_STATS, INTERMEDIATES, PARAMS
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.moments import align_mask, at_least_float32, masked_moments
from normjax.core.spmd import match_varying
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    affine_gradients,
    affine_parameters,
    along_channels,
    apply_affine,
    as_initializer,
)

LAYOUTS = ("seq", "grid", "causal", "decode")


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
    written by hand (reverse mode) and keeps x and the moments, nothing else
    (Ioffe & Szegedy, 2015).

    Args:
      x: [..., C].  scale, bias: [C], or None for none.
      mask: leading or all dims of x; True is valid.  None: all.
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      (y [..., C], mean [C], var [C], count [C]) in at least float32. The moments carry
      no gradient.
    """
    valid = None if mask is None else align_mask(mask, x)
    return _batch_normalize(*match_varying(x, scale, bias), valid, epsilon, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_normalize(x, scale, bias, valid, epsilon, axis_name):
    return _batch_forward(x, scale, bias, valid, epsilon, axis_name)[0]


def _batch_forward(x, scale, bias, valid, epsilon, axis_name):
    axes = tuple(range(x.ndim - 1))
    moments = masked_moments(x, axes, mask=valid, axis_name=axis_name)
    mean, var, count = moments
    inverse_root = jax.lax.rsqrt(var + epsilon)
    y = apply_affine((at_least_float32(x) - mean) * inverse_root, scale, bias)
    saved = (x, mean, inverse_root, count, scale, bias, valid)
    return (y, *(jnp.squeeze(m, axes) for m in moments)), saved


def _batch_backward(epsilon, axis_name, saved, cotangents):
    del epsilon
    x, mean, inverse_root, count, scale, bias, valid = saved
    axes = tuple(range(x.ndim - 1))
    normalized = (at_least_float32(x) - mean) * inverse_root
    g, dscale, dbias = affine_gradients(cotangents[0], normalized, scale, bias)

    def mean_over_batch(v):
        total = jnp.sum(v, axes, keepdims=True)
        if axis_name is not None:
            total = jax.lax.psum(total, axis_name)
        return total / jnp.maximum(count, 1)

    through = mean_over_batch(g) + normalized * mean_over_batch(g * normalized)
    if valid is not None:
        # Positions outside the mask are normalised but move no moment.
        through = jnp.where(valid, through, 0)
    dx = inverse_root * (g - through)
    return dx.astype(x.dtype), dscale, dbias, None


_batch_normalize.defvjp(_batch_forward, _batch_backward)


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
        y, dtype = self.normalize(x, mask, self.is_training(train))
        return y.astype(dtype)

    def is_training(self, train: bool | None) -> bool:
        """Whether to use the statistics of the batch."""
        if self.use_running_average is not None:
            return not self.use_running_average
        if train is None:
            raise UserError(f"{type(self).__name__} needs train=True or train=False")
        return train

    def normalize(
        self, x: jax.Array, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jnp.dtype]:
        """The output before its last cast, and the dtype to cast it to.

        Moves the running statistics when `train`.
        """
        channels = x.shape[-1]
        stats_dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running = {
            name: self.variable(BATCH_STATS, name, init, (channels,), stats_dtype)
            for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
        }
        affine = affine_parameters(self, channels, use_bias=self.use_bias)
        dtype = result_dtype(x, *affine, dtype=self.dtype)
        if not train:
            mean, var = (along_channels(v.value, x.ndim) for v in running.values())
            normalized = (at_least_float32(x) - mean) * jax.lax.rsqrt(
                var + self.epsilon
            )
            return apply_affine(normalized, *affine), dtype
        initializing = self.is_initializing()
        y, mean, var, count = batch_normalize(
            x,
            *affine,
            mask=mask,
            epsilon=self.epsilon,
            axis_name=None if initializing else self.axis_name,
        )
        for name, value in (("mean", mean), ("var", var)):
            self.sow(INTERMEDIATES, name, value)
        if not initializing:
            if self.unbiased_running_var:
                var = var * count / jnp.maximum(count - 1, 1)
            decay = jnp.where(count > 0, self.momentum, 1.0)
            for variable, value in zip(running.values(), (mean, var), strict=True):
                new = decay * variable.value + (1 - decay) * value
                variable.value = new.astype(variable.value.dtype)
        return y, dtype

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
        init = as_initializer(self.alpha_init)
        alpha = self.param("alpha", init, (1,), self.param_dtype)
        (y, dtype), wide = self.normalize(x, mask, train), at_least_float32(x)
        if self.skip_masked and mask is not None and train:
            y = jnp.where(align_mask(mask, x), y, wide)
        return (y + along_channels(alpha, x.ndim) * wide).astype(dtype)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """As BatchNorm's, with alpha added to the scale."""
        scale, shift = super().inference_affine(variables)
        return InferenceAffine(scale + np.float64(variables[PARAMS]["alpha"]), shift)
