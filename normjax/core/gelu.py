"""GELU: exact by erf, and in bfloat16 by what erf cannot be told from there."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32


class _Exponential(NamedTuple):
    """t -> exp(p_0 + p_1 t + p_2 t^2 + ... + c_1 w + c_2 w^2), w = exp(-decay * t).

    Where t is in [0, 13.2], behind which nothing of bfloat16 is left.
    """

    powers: Sequence[float]
    decay: float
    decaying: tuple[float, float]

    def __call__(self, t: jax.Array) -> jax.Array:
        total = jnp.full_like(t, self.powers[-1])
        for power in self.powers[-2::-1]:
            total = total * t + power
        first, second = self.decaying
        w = jnp.exp(-self.decay * t)
        return jnp.exp(total + w * (first + second * w))


# Minimax fits to a relative error of 3.6e-5 and 1.9e-5; of bfloat16 half a unit in the
# last place is 2e-3 to 4e-3. The slope of GELU changes its sign at -_TURN.
_TAIL = _Exponential(
    (
        -1.6539338544524789,
        -0.2600149413938375,
        -0.4853318362811294,
        -0.0005476224746104104,
        9.292770447288087e-06,
    ),
    0.399,
    (0.5718596517531083, 0.38895948734403696),
)
_SLOPE = _Exponential(
    (
        -0.6680487956433758,
        -0.041319483517664235,
        -0.496275043527318,
        -0.00017660742399273576,
        3.4453130877395004e-06,
    ),
    0.698,
    (0.19909496765119528, 0.06108417228132623),
)
_TURN = 0.7517915246935645
_LARGEST = 14.0


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))) (Hendrycks & Gimpel, 2016).

    Written with erf, as PyTorch does: the erfc form of `jax.nn.gelu` keeps more digits
    where the result is below 1e-4, and on CPU makes a feed-forward layer's training
    step 2.7 times slower. Computed in at least float32.

    Of bfloat16 it is max(x, 0) - |x| Phi(-|x|), with two exponentials for Phi, computed
    in float32: at most 0.505 units in the last place away from the exact value, and so
    is the derivative (exact values that are rounded: 0.5). On TPUs erf takes longer
    than the matrix product before it, exponentials have a unit of their own.

    Args:
      x: [...].

    Returns:
      [...] in the dtype of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.gelu(jnp.array([-9.0, 0.0, 9.0])).round(3) + 0.0)
      [0. 0. 9.]
    """
    if x.dtype == jnp.bfloat16:
        return _by_exponentials(x)
    wide = at_least_float32(x)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@jax.custom_jvp
def _by_exponentials(x: jax.Array) -> jax.Array:
    wide = at_least_float32(x)
    t = jnp.minimum(jnp.abs(wide), _LARGEST)
    return (jnp.maximum(wide, 0) - t * _TAIL(t)).astype(x.dtype)


@_by_exponentials.defjvp
def _by_exponentials_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    wide = at_least_float32(x)
    t = jnp.minimum(jnp.abs(wide), _LARGEST)
    # Phi(-t) - t phi(t), its zero as a factor so that it is near it as exact as far.
    below = (_TURN - t) * _SLOPE(t)
    slope = jnp.where(wide < 0, below, 1 - below)
    return _by_exponentials(x), (slope * dx).astype(x.dtype)
