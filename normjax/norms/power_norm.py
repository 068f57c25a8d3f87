"""PowerNorm: the running quadratic mean instead of the moments of the batch."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

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
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32, masked_mean
from normjax.core.overwrite import keep
from normjax.core.ranges import COUNT, Range
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
from normjax.norms.rms_norm import rms_normalize

WARMUP_RULES = ("released", "cumulative")


BACKWARD_SCALES = ("batch", "running")


def group_scale(x: jax.Array, num_groups: int, *, epsilon: float = 1e-5) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) over each of `num_groups` parts of the channels.

    Args:
      x: [..., C]; C divides by `num_groups`.
      num_groups: parts of the channels.  epsilon: added inside the root.

    Returns:
      [..., C] in at least float32. The gradient is exact.

    Raises:
      UserError: C does not divide by `num_groups`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[4.0, -4.0, 2.0, 2.0]])  # root mean squares 4 and 2
      >>> print(norms.group_scale(x, 2, epsilon=0.0).round(3))
      [[ 1. -1.  1.  1.]]
    """
    if x.shape[-1] % num_groups:
        raise UserError(f"{x.shape[-1]} channels do not split into {num_groups} groups")
    parts = x.reshape(*x.shape[:-1], num_groups, -1)
    return rms_normalize(parts, epsilon=epsilon).reshape(x.shape)


class GroupScale(nn.Module):
    """`group_scale` as a module: what stays of a PowerNorm when it is folded.

    Attributes:
      num_groups, epsilon, dtype: of the PowerNorm.
    """

    num_groups: int
    epsilon: float
    dtype: Dtype | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., C]."""
        y = group_scale(x, self.num_groups, epsilon=self.epsilon)
        return y.astype(self.dtype or x.dtype)


def power_normalize(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    nu: jax.Array,
    *,
    square: jax.Array,
    gradient_square: jax.Array,
    moving: jax.Array | bool = True,
    epsilon: float = 1e-5,
    backward_decay: float = 0.9,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """z * scale + bias, z = x / sqrt(square + epsilon), with PowerNorm's gradient.

    q = dy * scale,  p = q - (1 - backward_decay) * nu * z,
    dx = p / sqrt(gradient_square + epsilon),  new nu = nu + mean(p * z)
    (Shen et al., 2020). The cotangent of `nu` is the new nu.

    Args:
      x: [..., C].  scale, bias: [C], or None for none.  nu: [C], at least float32.
      square, gradient_square: [C], quadratic means; they carry no gradient.
      moving: bool, [C] or scalar; where nu moves.
      epsilon: added inside the roots.  backward_decay: weight of the old value in nu.
      axis_name: mesh axis or axes to average p * z over as well.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x, nu, square = jnp.array([[2.0], [4.0]]), jnp.zeros(1), jnp.full(1, 4.0)
      >>> def loss(x, nu):
      ...     y = norms.power_normalize(
      ...         x, None, None, nu, square=square, gradient_square=square, epsilon=0.0
      ...     )
      ...     return y.sum(), y
      >>> (_, y), (dx, new_nu) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, nu)
      >>> print(y.ravel().round(3), dx.ravel().round(3))
      [1. 2.] [0.5 0.5]
      >>> print(new_nu.round(3))  # 0 + mean(1 * y)
      [1.5]
    """
    roots = [
        along_channels(jax.lax.rsqrt(jax.lax.stop_gradient(s) + epsilon), x.ndim)
        for s in (square, gradient_square)
    ]
    x, scale, bias = match_varying(x, scale, bias)
    moving = jnp.asarray(moving)
    return _power(x, scale, bias, nu, *roots, moving, backward_decay, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _power(x, scale, bias, nu, root, gradient_root, moving, backward_decay, axis_name):
    del nu, gradient_root, moving, backward_decay, axis_name
    return apply_affine(at_least_float32(x) * root, scale, bias)


def _power_forward(*arguments):
    return _power(*arguments), arguments[:7]


def _power_backward(backward_decay, axis_name, saved, dy):
    x, scale, bias, nu, root, gradient_root, moving = saved
    z = at_least_float32(x) * root
    q, dscale, dbias = affine_gradients(dy, z, scale, bias)
    p = q - (1 - backward_decay) * along_channels(nu, x.ndim) * z
    axes = tuple(range(x.ndim - 1))
    step, _ = masked_mean(p * z, axes, axis_name=axis_name)
    new = jnp.where(moving, nu + jnp.squeeze(step, axes), nu).astype(nu.dtype)
    dx = (p * gradient_root).astype(x.dtype)
    return dx, dscale, dbias, new, None, None, None


_power.defvjp(_power_forward, _power_backward)


@NORMS.register(
    "power_norm",
    "batch_stats",
    "overwrite_with_gradient",
    "mask",
    "axis_name",
    *LAYOUTS,
)
class PowerNorm(nn.Module):
    """y = h / sqrt(phi + epsilon) * scale + bias (Shen et al., 2020).

    h is x divided by the root mean square of its group of channels; phi, per channel,
    the running mean of h**2 over all other axes. In the first `warmup_steps` updates
    the batch's own mean v of h**2 takes the place of phi. The gradient is approximate:
    a running state nu stands for the part that flows through the statistics (see
    `power_normalize`); the group scaling is differentiated exactly. The defaults are
    the released code; the paper's equations are num_groups=None, warmup_steps=0,
    backward_scale="running".

    Reads and writes `batch_stats/phi` [C] and the counter `batch_stats/step` (int32),
    which ticks once an update: microbatches of one update share it (see
    `core.collections.hold_counters`), and each enters phi as a batch of its own. So in
    warmup M microbatches enter the cumulative average with weight 1 / step each, and
    it leans towards recent updates. Reads `_overwrite_with_gradient/nu` [C], which the
    backward pass writes (see `core.overwrite`). `mask` says which positions feed v;
    nu averages over all positions, as released. A batch without a valid position is
    normalised by phi and moves nothing.

    nu diverges when (1 - backward_decay) * mean(z**2) exceeds 2, that is when phi is
    many times smaller than v: `floor` bounds that. In training it sows the scalars
    `power_norm_nu` = max |nu| and `power_norm_phi` = min phi into `diagnostics`.

    Axes and `axis_name` as in BatchNorm; inside `shard_map` replicated state needs it.

    Attributes:
      num_groups: groups of the group scaling; None or 0 leaves it out.
      warmup_steps: in optimizer updates.
      warmup_rule: how phi moves in warmup: "released" by the cumulative and then the
        exponential average, "cumulative" by the first alone.
      backward_scale: what divides the gradient: "batch" the root of v, as released;
        "running" what divided the forward pass, as in the paper.
      forward_decay, backward_decay: weights of the old value in phi and nu.
      floor: phi counts as at least this much where it divides; 0 is the released code.
      epsilon: added inside the roots.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.PowerNorm(warmup_steps=100)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> variables = norm.init(jax.random.key(1), x, train=True)
      >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, sorted(variables), int(state["batch_stats"]["step"])
      ((2, 4, 4, 8), ['_overwrite_with_gradient', 'batch_stats', 'params'], 1)
    """

    num_groups: int | None = 1
    warmup_steps: int = 10000
    warmup_rule: str = "released"
    backward_scale: str = "batch"
    forward_decay: float = 0.9
    backward_decay: float = 0.9
    floor: float = 1e-4
    epsilon: float = 1e-5
    axis_name: str | tuple[str, ...] | None = None
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones
    bias_init: Initializer | float = nn.initializers.zeros

    ranges: ClassVar[Mapping[str, Range]] = {"num_groups": COUNT}

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
          UserError: `train` is missing, a switch is unknown, C has no such groups.
        """
        self._check(train)
        channels = x.shape[-1]
        wide = jnp.promote_types(self.param_dtype, jnp.float32)
        phi = self.variable(BATCH_STATS, "phi", jnp.ones, (channels,), wide)
        counter = self.variable(BATCH_STATS, COUNTER, jnp.zeros, (), jnp.int32)
        nu = self.variable(OVERWRITE, "nu", jnp.zeros, (channels,), wide).value
        affine = affine_parameters(self, channels, use_bias=self.use_bias)
        dtype = result_dtype(x, *affine, dtype=self.dtype)
        h = x
        if self.num_groups:
            h = group_scale(x, self.num_groups, epsilon=self.epsilon)
        if self.is_initializing() or not train:
            root = jax.lax.rsqrt(self._floored(phi.value) + self.epsilon)
            z = at_least_float32(h) * along_channels(root, x.ndim)
            return keep(apply_affine(z, *affine), nu).astype(dtype)
        old, k = phi.value, counter.value + 1
        batch, moving = self._measure(h, mask, old)
        square = jnp.where(k <= self.warmup_steps, batch, self._floored(old))
        y = power_normalize(
            h,
            *affine,
            nu,
            square=square,
            gradient_square=batch if self.backward_scale == "batch" else square,
            moving=moving,
            epsilon=self.epsilon,
            backward_decay=self.backward_decay,
            axis_name=self.axis_name,
        )
        new = self._next(old, batch, k)
        phi.value = jnp.where(moving, new, old).astype(old.dtype)
        counter.value += jnp.any(moving).astype(jnp.int32)
        self.sow(DIAGNOSTICS, "power_norm_nu", jnp.max(jnp.abs(nu)))
        self.sow(DIAGNOSTICS, "power_norm_phi", jnp.min(old))
        return y.astype(dtype)

    @nn.nowrap
    def _check(self, train: bool | None) -> None:
        if train is None:
            raise UserError("PowerNorm needs train=True or train=False")
        if self.warmup_rule not in WARMUP_RULES:
            raise UserError(one_of("warmup_rule", self.warmup_rule, WARMUP_RULES))
        if self.backward_scale not in BACKWARD_SCALES:
            given = self.backward_scale
            raise UserError(one_of("backward_scale", given, BACKWARD_SCALES))

    @nn.nowrap
    def _floored(self, phi: jax.Array) -> jax.Array:
        return jnp.maximum(phi, self.floor) if self.floor else phi

    @nn.nowrap
    def _measure(self, h, mask, phi) -> tuple[jax.Array, jax.Array]:
        """Quadratic mean of the valid positions and whether there are any, [C] both."""
        axes = tuple(range(h.ndim - 1))
        squares = jnp.square(at_least_float32(jax.lax.stop_gradient(h)))
        over = {"mask": mask, "axis_name": self.axis_name}
        mean, count = (jnp.squeeze(m, axes) for m in masked_mean(squares, axes, **over))
        moving = count > 0
        return jnp.where(moving, mean, self._floored(phi)), moving

    @nn.nowrap
    def _next(self, phi: jax.Array, batch: jax.Array, k: jax.Array) -> jax.Array:
        """phi after the k-th update (k counts from 1)."""
        cumulative = (phi * (k - 1) + batch) / k
        average = jnp.where(k < self.warmup_steps, cumulative, phi)
        exponential = self.forward_decay * average + (1 - self.forward_decay) * batch
        if self.warmup_rule == "released":
            return exponential
        return jnp.where(k < self.warmup_steps, cumulative, exponential)

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine:
        """The per-channel affine map at evaluation, behind the group scaling.

        Args:
          variables: this module's own `{"params": ..., "batch_stats": ...}`.
        """
        params = {k: np.float64(v) for k, v in variables.get(PARAMS, {}).items()}
        phi = np.maximum(np.float64(variables[BATCH_STATS]["phi"]), self.floor)
        scale = params.get("scale", 1.0) / np.sqrt(phi + self.epsilon)
        before = None
        if self.num_groups:
            before = GroupScale(self.num_groups, self.epsilon, self.dtype, parent=None)
        return InferenceAffine(scale, params.get("bias", 0.0) + 0.0 * scale, before)
