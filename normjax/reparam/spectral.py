"""Kernels by their spectral norm: sigmaReparam and Stable Rank Normalization.

A kernel [..., in, out] is the matrix M [out, n] with n the product of all but the last
axis. Singular vectors come from a power iteration and are constants of the gradient.
"""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.core.moments import at_least_float32

TINY = 1e-12


def as_matrix(kernel: jax.Array) -> jax.Array:
    """[..., in, out] -> [out, n], in at least float32."""
    return at_least_float32(kernel).reshape(-1, kernel.shape[-1]).T


def as_kernel(matrix: jax.Array, like: jax.Array) -> jax.Array:
    return matrix.T.reshape(like.shape)


def times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, vector, precision=EXACT)


def unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), TINY)


def leading_vectors(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Left [out] and right [n] singular vectors of the largest singular value.

    Args:
      kernel: [..., in, out]; M [out, n] is its matrix, n the product of the others.

    Returns:
      (left [out], right [n]), of length 1, up to a common sign.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.diag(jnp.array([1.0, 4.0]))
      >>> left, right = reparam.leading_vectors(kernel)
      >>> print(abs(left), abs(right))
      [0. 1.] [0. 1.]
    """
    left, _, right = jnp.linalg.svd(as_matrix(kernel), full_matrices=False)
    return left[:, 0], right[0]


def spectral_norm(kernel: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """left^T M right, a scalar: the spectral norm if these are its singular vectors.

    Args:
      kernel: [..., in, out]; M [out, n] is its matrix, n the product of the others.
      left, right: [out] and [n], of length 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.diag(jnp.array([1.0, 4.0]))
      >>> float(reparam.spectral_norm(kernel, *reparam.leading_vectors(kernel)))
      4.0
    """
    return jnp.vdot(left, times(as_matrix(kernel), right), precision=EXACT)


def iterate_left_right(
    kernel: jax.Array, left: jax.Array, iterations: int = 1
) -> tuple[jax.Array, jax.Array]:
    """right = M^T left / |.|, left = M right / |.|, `iterations` times; constants.

    Args:
      kernel: [..., in, out]; M [out, n] is its matrix, n the product of the others.
      left: [out].  iterations: of the power method.

    Returns:
      (left [out], right [n]).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.diag(jnp.array([1.0, 4.0]))
      >>> left, right = reparam.iterate_left_right(kernel, jnp.array([0.6, 0.8]), 8)
      >>> print(left.round(3), right.round(3))
      [0. 1.] [0. 1.]
    """
    matrix, left = jax.lax.stop_gradient((as_matrix(kernel), at_least_float32(left)))

    def once(left):
        right = unit(times(matrix.T, left))
        return unit(times(matrix, right)), right

    vectors = once(left)
    for _ in range(iterations - 1):
        vectors = once(vectors[0])
    return vectors
