"""LAME: probabilities of one batch, corrected by which examples are alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT, einsum
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32

TOLERANCE = 1e-8  # relative change of the energy at which the iteration ends
FIRST_STOP = 2  # iteration, counted from 0, from which on it may


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    return einsum("nd,md->nm", a, b)


def _distances(features: jax.Array) -> jax.Array:
    """Euclidean distances [N, N]; 0 on the diagonal."""
    difference = features[:, None, :] - features[None, :, :]
    return jnp.sqrt(jnp.sum(jnp.square(difference), -1))


def nearest_affinity(features: jax.Array, neighbours: int = 5) -> jax.Array:
    """1 for the `neighbours` nearest others of an example, else 0; not symmetric.

    Args:
      features: [N, D].  neighbours: less than N.

    Returns:
      [N, N], rows of the examples whose neighbours they are.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> features = jnp.array([[0.0], [1.0], [5.0]])
      >>> print(adapt.nearest_affinity(features, neighbours=1))
      [[0. 1. 0.]
       [1. 0. 0.]
       [0. 1. 0.]]
    """
    count = len(features)
    distances = jnp.where(jnp.eye(count, dtype=bool), -1, _distances(features))
    # The first is the example itself.
    order = jnp.argsort(distances, axis=1)[:, 1 : neighbours + 1]
    return jnp.sum(jax.nn.one_hot(order, count, dtype=features.dtype), axis=1)


def radial_affinity(features: jax.Array, neighbours: int = 5) -> jax.Array:
    """exp(-d^2 / (2 s^2)), s the mean over examples of their `neighbours`-th distance.

    The distance of an example to itself counts as the first one.

    Args:
      features: [N, D].  neighbours: at most N.

    Returns:
      [N, N].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> features = jnp.array([[0.0], [1.0], [5.0]])
      >>> kernel = adapt.radial_affinity(features, neighbours=2)
      >>> kernel.shape, bool(kernel[0, 1] > kernel[1, 2]), float(kernel[0, 0])
      ((3, 3), True, 1.0)
    """
    distances = _distances(features)
    index = min(neighbours, len(features)) - 1
    width = jnp.mean(jnp.sort(distances, axis=1)[:, index])
    return jnp.exp(-jnp.square(distances) / (2 * jnp.square(width)))


def linear_affinity(features: jax.Array, neighbours: int = 5) -> jax.Array:
    """f f^T.

    Args:
      features: [N, D].  neighbours: unused.

    Returns:
      [N, N].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> print(adapt.linear_affinity(jnp.array([[1.0, 0.0], [1.0, 2.0]])))
      [[1. 1.]
       [1. 5.]]
    """
    del neighbours
    return _inner(features, features)


AFFINITIES: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "knn": nearest_affinity,
    "rbf": radial_affinity,
    "linear": linear_affinity,
}
"""How alike examples are, by name: `f(features, neighbours) -> [N, N]`.

Example:
  >>> from normjax.adapt import AFFINITIES
  >>> sorted(AFFINITIES)
  ['knn', 'linear', 'rbf']
"""


def affinity(
    features: jax.Array,
    kind: str = "rbf",
    *,
    neighbours: int = 5,
    symmetric: bool = False,
) -> jax.Array:
    """How alike the examples of a batch are, from features of length 1.

    Args:
      features: [N, D], of any length but 0.
      kind: key of `AFFINITIES`.  neighbours: of an example, where it has some.
      symmetric: take the mean of the matrix and its transpose.

    Returns:
      [N, N] in at least float32.

    Raises:
      UserError: unknown `kind`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> features = jnp.array([[3.0, 0.0], [0.0, 9.0]])  # scaled to length 1 first
      >>> print(adapt.affinity(features, "linear"))
      [[1. 0.]
       [0. 1.]]
    """
    if kind not in AFFINITIES:
        raise UserError(one_of("affinity", kind, AFFINITIES))
    wide = at_least_float32(features)
    unit = wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)
    kernel = AFFINITIES[kind](unit, neighbours)
    return (kernel + kernel.T) / 2 if symmetric else kernel


def laplacian_adjusted(
    probabilities: jax.Array,
    kernel: jax.Array,
    *,
    weight: float = 1.0,
    max_steps: int = 100,
) -> jax.Array:
    """Probabilities that agree within groups of like examples (Boudiaf et al., 2022).

    With u = -log(p + 1e-10) and Y = softmax(-u) at first, at most `max_steps` times

        Y <- softmax(-u + weight K Y)

    until the energy sum(u Y - weight (K Y_old) Y + Y log Y) changes by no more than
    1e-8 of itself. Compiled as one loop.

    Args:
      probabilities: p, [N, classes].  kernel: K, [N, N], see `affinity`.
      weight: of the agreement.  max_steps: iterations at most.

    Returns:
      Y, [N, classes] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> probabilities = jnp.array([[0.9, 0.1], [0.45, 0.55]])
      >>> alike = jnp.ones((2, 2))  # two views of one thing
      >>> y = adapt.laplacian_adjusted(probabilities, alike)
      >>> print(y.argmax(-1))
      [0 0]
    """
    unary = -jnp.log(at_least_float32(probabilities) + 1e-10)
    kernel = at_least_float32(kernel)

    def step(carry):
        count, old, energy, _ = carry
        pull = weight * jnp.matmul(kernel, old, precision=EXACT)
        new = jax.nn.softmax(pull - unary, axis=-1)
        entropy = new * jnp.log(jnp.maximum(new, 1e-20))
        reached = jnp.sum(unary * new - pull * new + entropy)
        still = jnp.abs(reached - energy) <= TOLERANCE * jnp.abs(energy)
        return count + 1, new, reached, still & (count >= FIRST_STOP)

    def goes_on(carry):
        count, _, _, done = carry
        return (count < max_steps) & ~done

    first = jax.nn.softmax(-unary, axis=-1)
    start = (0, first, jnp.asarray(jnp.inf, first.dtype), jnp.asarray(False))
    return jax.lax.while_loop(goes_on, step, start)[1]
