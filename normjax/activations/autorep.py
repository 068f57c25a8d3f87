"""AutoReP: ReLU that becomes a polynomial where it is needed least."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations.base import ACTIVATIONS
from normjax.core.collections import BATCH_STATS
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def relu_polynomial(
    mean: jax.Array, std: jax.Array, *, degree: int = 2, as_published: bool = False
) -> jax.Array:
    """Least squares of ReLU under N(mean, std^2) (AutoReP's DaPa; Peng et al., 2023).

    Args:
      mean, std: [...].
      degree: 1 or 2.
      as_published: c0 / 5 and c2 / 10, as in the published code.

    Returns:
      [..., degree + 1], the coefficients c0, c1, ...

    Raises:
      UserError: another degree.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.activations import relu_polynomial
      >>> print(relu_polynomial(jnp.zeros(()), jnp.ones(())).round(3))
      [0.199 0.5   0.199]
    """
    if degree not in (1, 2):
        raise UserError(f"a polynomial for ReLU has degree 1 or 2, got {degree}")
    ratio = mean / std
    density = jnp.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    below = jax.scipy.stats.norm.cdf(ratio)
    if degree == 1:
        found = [std * density, below]
    else:
        square = density / (2 * std)
        found = [density * (mean * ratio + std) / 2, below - ratio * density, square]
    if as_published:
        found[0] = found[0] / 5
        found[2:] = [c / 10 for c in found[2:]]
    return jnp.stack(found, axis=-1)


class RelayState(NamedTuple):
    """What AutoReP's activation keeps; arrays by position have no batch.

    Attributes:
      mask: 1 where it is ReLU, [..., C].  count: forwards, at most 508.
      mean, var: running moments of the input, [C].
      polynomial: coefficients by degree, [3, C], parameters that are overwritten.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.activations import RelayState
      >>> RelayState.start(jnp.ones((2, 2, 3)), jnp.zeros((3, 3))).mask.shape
      (2, 2, 3)
    """

    mask: jax.Array
    count: jax.Array
    mean: jax.Array
    var: jax.Array
    polynomial: jax.Array

    @classmethod
    def start(cls, alpha: jax.Array, polynomial: jax.Array) -> "RelayState":
        """ReLU everywhere, before the first forward."""
        channels = jnp.zeros_like(alpha, shape=alpha.shape[-1:])
        mask, count = jnp.ones_like(alpha), jnp.zeros([], jnp.int32)
        return cls(mask, count, channels, channels + 1, polynomial)


MOST_FORWARDS, REFRESH, MOMENTUM = 508, 10, 0.1


def relay_state(
    state: RelayState,
    alpha: jax.Array,
    x: jax.Array,
    *,
    train: bool,
    threshold: float = 0.001,
    clip_square: float = 0.0,
    degree: int = 2,
    var_min: float = 0.5,
    as_published: bool = False,
) -> RelayState:
    """The state of AutoReP's activation for a forward of x (Peng et al., 2023).

    A position changes to the polynomial where alpha <= -threshold, and back to ReLU
    where alpha > threshold. Running moments count the input in; every tenth forward
    the polynomial is fitted to them; its square is clipped.

    Args:
      state: of the forward before.  alpha: [..., C].  x: [B, ..., C].
      train: whether running moments are updated.
      threshold: of the changes.
      clip_square: largest size of the coefficient of x^2; 0: it is not clipped.
      degree: of the fit.
      var_min: the smallest variance of the fit.
      as_published: the variance stands where the deviation belongs, and coefficients
        are divided as in `relu_polynomial`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.activations import RelayState, relay_state
      >>> alpha = jnp.array([[[0.5, -0.5]]])
      >>> state = RelayState.start(alpha, jnp.zeros((3, 2)))
      >>> x = jnp.zeros((4, 1, 1, 2))
      >>> print(relay_state(state, alpha, x, train=False).mask)
      [[[1. 0.]]]
    """
    kept = jnp.where(state.mask > 0, alpha > -threshold, alpha > threshold)
    count = jnp.minimum(state.count + 1, MOST_FORWARDS)
    mean, var = state.mean, state.var
    if train:
        axes, samples = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        here = jnp.var(x, axes) * samples / max(samples - 1, 1)
        mean = mean + MOMENTUM * (jnp.mean(x, axes) - mean)
        var = var + MOMENTUM * (here - var)
    floor = jnp.maximum(var, var_min)
    fit = relu_polynomial(
        mean,
        floor if as_published else jnp.sqrt(floor),
        degree=degree,
        as_published=as_published,
    ).T
    fit = jnp.pad(fit, ((0, 2 - degree), (0, 0)))
    polynomial = jnp.where(count % REFRESH == 0, fit, state.polynomial)
    if clip_square:
        square = jnp.clip(polynomial[2], -clip_square, clip_square)
        polynomial = polynomial.at[2].set(square)
    return RelayState(kept.astype(state.mask.dtype), count, mean, var, polynomial)


def relay(
    x: jax.Array,
    alpha: jax.Array,
    polynomial: jax.Array,
    mask: jax.Array,
    *,
    scale_square: float = 1.0,
) -> jax.Array:
    """ReLU where the mask is 1, a polynomial elsewhere (AutoReP; Peng et al., 2023).

        y = mask relu(x) + (1 - mask) (scale_square c2 x^2 + c1 x + c0)

    The gradient of alpha goes straight through the mask, at every position:
    softplus(alpha) times the sum over samples of dy (relu(x) - polynomial(x)).

    Args:
      x: [B, ..., C].  alpha: [..., C].
      polynomial: [3, C].  mask: [..., C], of `relay_state`.
      scale_square: factor of x^2.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.activations import relay
      >>> c = jnp.array([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
      >>> mask = jnp.array([[[1.0, 0.0]]])
      >>> print(relay(jnp.full((1, 1, 1, 2), -1.0), mask, c, mask).ravel())
      [0.  0.5]
    """
    c0, c1, c2 = (c.reshape(*[1] * (x.ndim - 1), -1) for c in polynomial)
    curve = scale_square * c2 * x * x + c1 * x + c0
    through = straight_mask(alpha, mask).reshape(
        (1,) * (x.ndim - mask.ndim) + mask.shape
    )
    return through * jax.nn.relu(x) + (1 - through) * curve


@jax.custom_vjp
def straight_mask(alpha: jax.Array, mask: jax.Array) -> jax.Array:
    """The mask, with a gradient by alpha: softplus(alpha) times its own (AutoReP).

    Args:
      alpha, mask: [...].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> gradient = jax.grad(activations.straight_mask)(jnp.zeros(()), jnp.ones(()))
      >>> print(gradient.round(4))
      0.6931
    """
    del alpha
    return mask


def _straight_forward(alpha, mask):
    return mask, alpha


def _straight_backward(alpha, d):
    return d * jax.nn.softplus(alpha), jnp.zeros_like(d)


straight_mask.defvjp(_straight_forward, _straight_backward)


def relu_budget_penalty(
    alpha: Any, masks: Any, budget: float, strength: float
) -> jax.Array:
    """strength relu(mean(mask) - budget / total), of all positions of a network.

    Its gradient by alpha goes straight through, times softplus(alpha) (AutoReP).

    Args:
      alpha: tree of indicators.  masks: the tree of their masks.
      budget: positions that may stay ReLU.  strength: 80 to 240 in the paper's runs.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.activations import relu_budget_penalty
      >>> masks = {"relu": jnp.ones(4)}
      >>> print(relu_budget_penalty(masks, masks, budget=1, strength=2.0))
      1.5
    """
    through = jax.tree.leaves(jax.tree.map(straight_mask, alpha, masks))
    total = sum(m.size for m in through)
    mean = sum(jnp.sum(m) for m in through) / total
    return strength * jax.nn.relu(mean - budget / total)


@ACTIVATIONS.register("autorep")
class AutoReP(nn.Module):
    """ReLU at some positions, a polynomial at the others (Peng et al., 2023).

    y = mask relu(x) + (1 - mask) (scale_square c2 x^2 + c1 x + c0), of channels c. The
    mask follows a learned `alpha` of every position and channel with hysteresis;
    every tenth forward the polynomial is fitted anew to running moments of x, and is
    trained between. State, in "batch_stats", advances wherever that is mutable. With
    the penalty "relu_budget" few positions stay ReLU.

    A fit overwrites parameters in the paper. Here the parameter `change` counts what
    updates do, and the state the polynomial that it starts from: the same numbers.

    x: [B, ..., C] of one size, as every position has an alpha.

    Attributes:
      degree: of the fit, 1 or 2.
      threshold: of the hysteresis; 0.003 in the authors' runs.
      clip_square: largest size of c2; 0: it is not clipped.
      scale_square: factor of x^2.
      var_min: the smallest variance of the fit.
      as_published: the fit of the published code, see `relu_polynomial`.
      param_dtype: of the parameters.

    Raises:
      UserError: another degree, or negative numbers.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([[-1.0, 1.0]])
      >>> y, _ = activations.AutoReP().init_with_output(jax.random.key(0), x)
      >>> print(y)
      [[0. 1.]]
    """

    degree: int = 2
    threshold: float = 0.001
    clip_square: float = 0.0
    scale_square: float = 1.0
    var_min: float = 0.5
    as_published: bool = False
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name in ("threshold", "clip_square", "var_min"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"autorep: {name} must be at least 0, got {getattr(self, name)}"
                )
        wide = at_least_float32(x)
        shape, channels = x.shape[1:] or x.shape, x.shape[-1]
        dtype, init = self.param_dtype, nn.initializers
        alpha = self.param("alpha", init.uniform(1.0), shape, dtype)
        change = self.param("change", init.zeros, (3, channels), dtype)
        alpha, change = alpha.astype(wide.dtype), change.astype(wide.dtype)

        def begin(name):
            fit = relu_polynomial(
                jnp.zeros(channels),
                jnp.ones(channels),
                degree=self.degree,
                as_published=self.as_published,
            ).T
            fit = jnp.pad(fit, ((0, 2 - self.degree), (0, 0)))
            start = RelayState.start(jnp.zeros(shape, dtype), fit.astype(dtype))
            return getattr(start, name)

        kept = {
            name: self.variable(BATCH_STATS, f"relay_{name}", begin, name)
            for name in RelayState._fields
        }
        applied = self.variable(
            BATCH_STATS, "relay_change", jnp.zeros, (3, channels), dtype
        )
        held = RelayState(*(variable.value for variable in kept.values()))
        moved = jax.lax.stop_gradient(change - applied.value)
        training = self.is_mutable_collection(BATCH_STATS)
        state = held
        if not self.is_initializing():
            state = relay_state(
                held._replace(polynomial=held.polynomial + moved),
                jax.lax.stop_gradient(alpha),
                jax.lax.stop_gradient(wide),
                train=training,
                threshold=self.threshold,
                clip_square=self.clip_square,
                degree=self.degree,
                var_min=self.var_min,
                as_published=self.as_published,
            )
            if training:
                for name, variable in kept.items():
                    variable.value = getattr(state, name).astype(variable.value.dtype)
                applied.value = jax.lax.stop_gradient(change).astype(self.param_dtype)
        polynomial = state.polynomial + change - jax.lax.stop_gradient(change)
        y = relay(wide, alpha, polynomial, state.mask, scale_square=self.scale_square)
        return y.astype(x.dtype)
