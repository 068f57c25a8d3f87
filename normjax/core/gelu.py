"""GELU: exact by erf, and in bfloat16 by what erf cannot be told from there."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.materialize import materialized
from normjax.core.moments import at_least_float32


class _Exponential(NamedTuple):
    """t -> exp(p(t) + c(w)), w = exp(-decay * t), of polynomials p and c.

    Where t is in [0, 13.2], behind which nothing of bfloat16 is left.

    Attributes:
      powers: coefficients of p, of 1, t, t**2.
      decay: how fast w falls.  decaying: coefficients of c, of w, w**2, w**3.
    """

    powers: Sequence[float]
    decay: float
    decaying: Sequence[float]

    def __call__(self, t: jax.Array) -> jax.Array:
        # TPUs have 2**x, to which exp multiplies first; on CPUs that is slow.
        two = functools.partial(self._powers_of, functools.partial(jnp.power, 2.0), 2.0)
        natural = functools.partial(self._powers_of, jnp.exp, math.e)
        return jax.lax.platform_dependent(t, tpu=two, default=natural)

    def _powers_of(
        self, power: Callable[[jax.Array], jax.Array], base: float, t: jax.Array
    ) -> jax.Array:
        unit = math.log(base)
        w = power(-self.decay / unit * t)
        exponent = _polynomial(t, [c / unit for c in self.powers])
        return power(exponent + w * _polynomial(w, [c / unit for c in self.decaying]))


def _polynomial(x: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


# Fits with a relative error of at most 4.9e-5 and 3.1e-5, where half a unit in the last
# place of bfloat16 is 2e-3 to 4e-3. Where it takes a result to another bfloat16 number,
# the middle between the two is no further away than 0.005 units.
# The slope of GELU changes its sign at -_TURN.
_TAIL = _Exponential(
    powers=(-2.488764550912066, -0.09749430729118706, -0.4987067930129613),
    decay=0.25517120361328127,
    decaying=(1.3202425430209024, 0.0, 0.47536169359117114),
)
_SLOPE = _Exponential(
    powers=(-0.7872591172475781, -0.008904709406119041, -0.4997833691089869),
    decay=0.4076695170593262,
    decaying=(0.23000586846389923, 0.04942443977737245, 0.09995332505928346),
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
    y = materialized(_by_exponentials(x))  # two products read it, there and back
    return y, (slope * dx).astype(x.dtype)
