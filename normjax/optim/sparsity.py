"""Activations that are replaced in stages: ProSparse and AutoReP."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError


def prosparse_factor(
    step: Any, *, start: int, ends: Sequence[int], peaks: Sequence[float]
) -> jax.Array:
    """The factor of ProSparse's L1 penalty at a step (Song et al., 2025).

    0 until `start`; peaks[0] until ends[0]; then in each stage from the last peak to
    the next by half a sine:

        p_{i-1} + (sin(-pi/2 + pi x) + 1) / 2 (p_i - p_{i-1})

    at share x of the stage; after the last, the last peak.

    Args:
      step: 1, 2, ...
      start: the last step of the model with ReLU and no penalty.
      ends: the last step of each stage.  peaks: the factor there.

    Raises:
      UserError: other numbers of ends and peaks, or ends that do not rise.

    Example:
      >>> from normjax.optim import prosparse_factor
      >>> stages = {"start": 10, "ends": (20, 40), "peaks": (0.5, 1.5)}
      >>> [float(prosparse_factor(step, **stages)) for step in (10, 20, 30, 40, 99)]
      [0.0, 0.5, 1.0, 1.5, 1.5]
    """
    if len(ends) != len(peaks) or not ends:
        raise UserError(f"{len(ends)} ends of stages and {len(peaks)} peaks")
    if any(a >= b for a, b in itertools.pairwise([start, *ends])):
        raise UserError(f"the ends of stages {tuple(ends)} must rise from {start}")
    t = jnp.asarray(step, jnp.result_type(float))
    factor = jnp.where(t > start, peaks[0], 0.0)
    stages = zip(itertools.pairwise(ends), itertools.pairwise(peaks), strict=True)
    for (begin, end), (low, high) in stages:
        x = jnp.clip((t - begin) / (end - begin), 0, 1)
        wave = (jnp.sin(math.pi * (x - 0.5)) + 1) / 2
        factor = jnp.where(t > begin, low + wave * (high - low), factor)
    return factor


def sparsity_penalty(x: jax.Array) -> jax.Array:
    """The mean over tokens of the L1 norm of a gated hidden vector.

    Args:
      x: [..., hidden].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import sparsity_penalty
      >>> print(sparsity_penalty(jnp.array([[1.0, -2.0], [0.0, 1.0]])))
      2.0
    """
    return jnp.mean(jnp.sum(jnp.abs(x), axis=-1))


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
      >>> from normjax.optim import relu_polynomial
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
      mask: 1 where it is ReLU, [H, W, C].  count: forwards, at most 508.
      mean, var: running moments of the input, [C].
      polynomial: coefficients by degree, [3, C], parameters that are overwritten.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import RelayState
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
        channels = jnp.zeros_like(alpha[0, 0])
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
      state: of the forward before.  alpha: [H, W, C].  x: [B, H, W, C].
      train: whether running moments are updated.
      threshold: of the changes.
      clip_square: largest size of the coefficient of x^2; 0: it is not clipped.
      degree: of the fit.
      var_min: the smallest variance of the fit.
      as_published: the variance stands where the deviation belongs, and coefficients
        are divided as in `relu_polynomial`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import RelayState, relay_state
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
      x: [B, H, W, C].  alpha: [H, W, C].
      polynomial: [3, C].  mask: [H, W, C], of `relay_state`.
      scale_square: factor of x^2.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import relay
      >>> c = jnp.array([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
      >>> mask = jnp.array([[[1.0, 0.0]]])
      >>> print(relay(jnp.full((1, 1, 1, 2), -1.0), mask, c, mask).ravel())
      [0.  0.5]
    """
    c0, c1, c2 = (c.reshape(*[1] * (x.ndim - 1), -1) for c in polynomial)
    curve = scale_square * c2 * x * x + c1 * x + c0
    through = _straight(alpha, mask)[None]
    return through * jax.nn.relu(x) + (1 - through) * curve


@jax.custom_vjp
def _straight(alpha, mask):
    """The mask, with a gradient by alpha: softplus(alpha) times its own."""
    del alpha
    return mask


def _straight_forward(alpha, mask):
    return mask, alpha


def _straight_backward(alpha, d):
    return d * jax.nn.softplus(alpha), jnp.zeros_like(d)


_straight.defvjp(_straight_forward, _straight_backward)


def relu_budget_penalty(alpha: Any, masks: Any, budget: float, strength: float):
    """strength relu(mean(mask) - budget / total), of all positions of a network.

    Its gradient by alpha goes straight through, times softplus(alpha).

    Args:
      alpha: tree of indicators.  masks: the tree of their masks.
      budget: positions that may stay ReLU.  strength: 80 to 240 in the paper's runs.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import relu_budget_penalty
      >>> masks = {"relu": jnp.ones(4)}
      >>> print(relu_budget_penalty(masks, masks, budget=1, strength=2.0))
      1.5
    """
    through = jax.tree.leaves(jax.tree.map(_straight, alpha, masks))
    total = sum(m.size for m in through)
    mean = sum(jnp.sum(m) for m in through) / total
    return strength * jax.nn.relu(mean - budget / total)
