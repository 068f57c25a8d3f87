"""Unified Normalization: quadratic means over a window of batches."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.collections import (
    BATCH_STATS,
    COUNTER,
    DIAGNOSTICS,
    OVERWRITE,
    PARAMS,
)
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32, masked_mean
from normjax.core.overwrite import keep
from normjax.core.registry import LAYOUTS
from normjax.core.spmd import match_varying
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    affine_gradients,
    affine_parameters,
    along_channels,
    apply_affine,
)

RESCALE_LIMIT = 5.0


class GradientState(NamedTuple):
    """What Unified Normalization remembers of its gradients.

    Attributes:
      window: [M, C], mean(q * z) of the last M batches (see `unified_normalize`).
      nu: [C], running average of their mean.
    """

    window: jax.Array
    nu: jax.Array


class Phase(NamedTuple):
    """Where in its schedule a layer is, as the backward pass needs it.

    Attributes:
      slot: int32, the slot of the gradient window that this batch takes.
      alone: bool, use this batch's mean(q * z) instead of the window's.
      skipped: bool, the batch was found to be an outlier, or there is no window.
      moving: bool, [C] or scalar; where the state moves.
    """

    slot: jax.Array
    alone: jax.Array
    skipped: jax.Array
    moving: jax.Array


def unified_normalize(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    state: GradientState,
    phase: Phase,
    *,
    square: jax.Array,
    rescale: jax.Array,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """z * scale + bias, z = x / sqrt(square + epsilon), with the gradient of UN.

    q = dy * scale * rescale,  g = mean(q * z), put into the window (nu instead of it
    if skipped),  mean_g = mean of the window or g itself,
    nu = momentum * nu + (1 - momentum) * mean_g,
    dx = (q - c * z) / sqrt(square + epsilon) with c the new nu, or mean_g if skipped
    (Yang et al., 2022). The cotangent of `state` is the new state.

    Args:
      x: [..., C].  scale, bias: [C], or None for none.
      state: a `GradientState`.  phase: a `Phase`, where in the schedule this batch is.
      square, rescale: [C]; they carry no gradient.
      epsilon: added inside the root.  momentum: weight of the old value in nu.
      axis_name: mesh axis or axes to average q * z over as well.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> from normjax.norms.unified_norm import GradientState, Phase
      >>> x, square = jnp.array([[2.0], [4.0]]), jnp.full(1, 4.0)
      >>> state = GradientState(window=jnp.zeros((4, 1)), nu=jnp.zeros(1))
      >>> phase = Phase(*(jnp.array(v) for v in (0, True, False, True)))
      >>> def loss(x, state):
      ...     y = norms.unified_normalize(
      ...         x, None, None, state, phase, square=square, rescale=jnp.ones(1)
      ...     )
      ...     return y.sum(), y
      >>> (_, y), (_, new) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, state)
      >>> print(y.ravel().round(3))
      [1. 2.]
      >>> print(new.window.ravel().round(3))  # mean(1 * y) in the first slot
      [1.5 0. 0. 0.]
    """
    root, rescale = (
        along_channels(jax.lax.stop_gradient(v), x.ndim)
        for v in (jax.lax.rsqrt(square + epsilon), rescale)
    )
    x, scale, bias = match_varying(x, scale, bias)
    return _unified(x, scale, bias, state, phase, root, rescale, momentum, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _unified(x, scale, bias, state, phase, root, rescale, momentum, axis_name):
    del state, phase, rescale, momentum, axis_name
    return apply_affine(at_least_float32(x) * root, scale, bias)


def _unified_forward(*arguments):
    return _unified(*arguments), arguments[:7]


def _unified_backward(momentum, axis_name, saved, dy):
    x, scale, bias, old, phase, root, rescale = saved
    z = at_least_float32(x) * root
    q, dscale, dbias = affine_gradients(dy, z * rescale, scale, bias)
    q = q * rescale
    axes = tuple(range(x.ndim - 1))
    g = jnp.squeeze(masked_mean(q * z, axes, axis_name=axis_name)[0], axes)
    entry = jnp.where(phase.skipped, old.nu, g).astype(old.window.dtype)
    window = old.window.at[phase.slot].set(entry)
    mean_g = jnp.where(phase.alone, g, jnp.mean(window, 0))
    nu = momentum * old.nu + (1 - momentum) * mean_g
    through = jnp.where(phase.skipped, mean_g, nu)
    dx = ((q - along_channels(through, x.ndim) * z) * root).astype(x.dtype)
    new = jax.tree.map(
        lambda a, b: jnp.where(phase.moving, a, b).astype(b.dtype),
        GradientState(window, nu),
        old,
    )
    return dx, dscale, dbias, new, None, None, None


_unified.defvjp(_unified_forward, _unified_backward)


class Measured(NamedTuple):
    """What the forward pass finds out about one batch, before anything is stored.

    Attributes:
      square: [C], what z is divided by the root of.  rescale: [C], for the gradient.
      window: [M, C], the window after this batch.
    """

    square: jax.Array
    rescale: jax.Array
    window: jax.Array
    phase: Phase


@NORMS.register(
    "unified_norm",
    "batch_stats",
    "overwrite_with_gradient",
    "mask",
    "axis_name",
    *LAYOUTS,
)
class UnifiedNorm(nn.Module):
    """y = x / sqrt(s + epsilon) * scale + bias, s from a window (Yang et al., 2022).

    x2 is the batch's mean of x**2 per channel. s is the geometric mean of the last
    `window` of them, x2 alone in warmup; phi, a running average of s, takes its place
    at evaluation. The gradient is approximate, from averages over the last
    `gradient_window` backward passes (see `unified_normalize`), and scaled by
    r = sqrt(s + epsilon) / sqrt(phi + epsilon), kept in [1/5, 5].

    With `filter_outliers` a batch after which arithmetic and geometric mean of the
    window differ, in any channel, by more than window * R is normalised by its own x2
    and leaves phi in the window instead; R is the variance of all square roots in the
    window before the batch.

    Reads and writes `batch_stats/{phi [C], window [M, C], skipped}` and the counter
    `batch_stats/step` (int32), which ticks once an update: microbatches of one update
    share it (see `core.collections.hold_counters`), so they share a slot and the last
    one stays in the window. Reads `_overwrite_with_gradient/{window, nu}`, which the
    backward pass writes (see `core.overwrite`). `mask` says which positions feed x2;
    the gradient averages over all positions, as released. A batch without a valid
    position is normalised by phi and moves nothing.

    In training it sows the scalars `unified_norm_nu` = max |nu|, `unified_norm_phi` =
    min phi and `unified_norm_skipped` into `diagnostics`. Axes and `axis_name` as in
    BatchNorm; inside `shard_map` replicated state needs it.

    Attributes:
      window, gradient_window: batches remembered by the forward and the backward pass.
      warmup_steps: in optimizer updates.
      filter_outliers: off for text, on for images in the paper.
      rescale_after: r is 1 until this many updates, and in warmup.
      momentum: weight of the old value in phi and nu.
      epsilon: added inside the roots.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.UnifiedNorm(window=4, warmup_steps=0)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> variables = norm.init(jax.random.key(1), x, train=True)
      >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, state["batch_stats"]["window"].shape, sorted(variables)
      ((2, 4, 4, 8), (4, 8), ['_overwrite_with_gradient', 'batch_stats', 'params'])
    """

    window: int = 4
    gradient_window: int = 4
    warmup_steps: int = 4000
    filter_outliers: bool = False
    rescale_after: int = 1000
    momentum: float = 0.9
    epsilon: float = 1e-5
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
        """x: [..., C] -> [..., C]; `mask` and `train` as in BatchNorm.

        Raises:
          UserError: `train` is missing or a window is empty.
        """
        if train is None:
            raise UserError("UnifiedNorm needs train=True or train=False")
        if min(self.window, self.gradient_window) < 1:
            raise UserError("UnifiedNorm: window and gradient_window are at least 1")
        channels = x.shape[-1]
        stats, gradients = self._remembered(channels)
        affine = affine_parameters(self, channels, use_bias=self.use_bias)
        dtype = result_dtype(x, *affine, dtype=self.dtype)
        phi = stats["phi"].value
        if self.is_initializing() or not train:
            root = along_channels(jax.lax.rsqrt(phi + self.epsilon), x.ndim)
            z = at_least_float32(x) * root
            return keep(apply_affine(z, *affine), gradients).astype(dtype)
        measured = self._measure(x, mask, phi, stats["window"].value, stats[COUNTER])
        phase = measured.phase
        y = unified_normalize(
            x,
            *affine,
            gradients,
            phase,
            square=measured.square,
            rescale=measured.rescale,
            epsilon=self.epsilon,
            momentum=self.momentum,
            axis_name=self.axis_name,
        )
        new = self.momentum * phi + (1 - self.momentum) * measured.square
        for name, value in (("phi", new), ("window", measured.window)):
            old = stats[name].value
            stats[name].value = jnp.where(phase.moving, value, old).astype(old.dtype)
        moved = jnp.any(phase.moving)
        outlier = moved & phase.skipped & (self.window > 1)
        stats["skipped"].value += outlier.astype(jnp.int32)
        stats[COUNTER].value += moved.astype(jnp.int32)
        self.sow(DIAGNOSTICS, "unified_norm_nu", jnp.max(jnp.abs(gradients.nu)))
        self.sow(DIAGNOSTICS, "unified_norm_phi", jnp.min(phi))
        skipped = stats["skipped"].value.astype(jnp.float32)
        self.sow(DIAGNOSTICS, "unified_norm_skipped", skipped)
        return y.astype(dtype)

    def _remembered(
        self, channels: int
    ) -> tuple[dict[str, nn.Variable], GradientState]:
        wide = jnp.promote_types(self.param_dtype, jnp.float32)
        rows = (self.window, channels)
        stats = {
            "phi": self.variable(BATCH_STATS, "phi", jnp.ones, (channels,), wide),
            "window": self.variable(BATCH_STATS, "window", jnp.zeros, rows, wide),
        }
        for name in ("skipped", COUNTER):
            stats[name] = self.variable(BATCH_STATS, name, jnp.zeros, (), jnp.int32)
        rows = (self.gradient_window, channels)
        window = self.variable(OVERWRITE, "window", jnp.zeros, rows, wide)
        nu = self.variable(OVERWRITE, "nu", jnp.zeros, (channels,), wide)
        return stats, GradientState(window.value, nu.value)

    @nn.nowrap
    def _measure(self, x, mask, phi, window, counter) -> Measured:
        """What this batch is normalised by and what it leaves in the window."""
        k, axes = counter.value + 1, tuple(range(x.ndim - 1))
        squares = jnp.square(at_least_float32(jax.lax.stop_gradient(x)))
        over = {"mask": mask, "axis_name": self.axis_name}
        mean, count = (jnp.squeeze(m, axes) for m in masked_mean(squares, axes, **over))
        moving = count > 0
        x2 = jnp.where(moving, mean, phi)
        filled = window.at[k % self.window].set(x2.astype(window.dtype))
        skipped, warm = jnp.asarray(self.window == 1), k < self.warmup_steps
        if self.filter_outliers:
            outlier = ~warm & self._is_outlier(window, filled)
            phi_in = filled.at[k % self.window].set(phi.astype(window.dtype))
            filled = jnp.where(outlier, phi_in, filled)
            skipped |= outlier
        alone = warm | skipped
        square = jnp.where(alone | (k <= self.window), x2, _geometric_mean(filled))
        ratio = jnp.sqrt((square + self.epsilon) / (phi + self.epsilon))
        plain = (k <= max(self.rescale_after, self.warmup_steps)) | skipped
        limited = jnp.clip(ratio, 1 / RESCALE_LIMIT, RESCALE_LIMIT)
        phase = Phase(
            slot=k % self.gradient_window,
            alone=alone | (k <= self.gradient_window),
            skipped=skipped,
            moving=moving,
        )
        return Measured(square, jnp.where(plain, 1.0, limited), filled, phase)

    @nn.nowrap
    def _is_outlier(self, before: jax.Array, filled: jax.Array) -> jax.Array:
        """Whether the last entry of the window is unlike the others."""
        ddof = min(1, before.size - 1)
        spread = jnp.var(jnp.sqrt(before), ddof=ddof)
        gap = jnp.mean(filled, 0) - _geometric_mean(filled)
        return jnp.any(gap > spread * self.window)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """The per-channel affine map at evaluation: BatchNorm's with mean zero.

        Args:
          variables: this module's own `{"params": ..., "batch_stats": ...}`.
        """
        params = {k: np.float64(v) for k, v in variables.get(PARAMS, {}).items()}
        phi = np.float64(variables[BATCH_STATS]["phi"])
        scale = params.get("scale", 1.0) / np.sqrt(phi + self.epsilon)
        return InferenceAffine(scale, params.get("bias", 0.0) + 0.0 * scale)


def _geometric_mean(window: jax.Array) -> jax.Array:
    """[M, C] -> [C]; zero where an entry is."""
    return jnp.exp(jnp.mean(jnp.log(window), 0))
