"""Kernels by their spectral norm: sigmaReparam and Stable Rank Normalization.

A kernel [..., in, out] is the matrix M [out, n] with n the product of all but the last
axis. Singular vectors come from a power iteration and are constants of the gradient.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.reparam.base import KERNEL, REPARAMS, Reparameterization, safe_sqrt

GAMMA_INITS = ("one", "spectral")

_TINY = 1e-12


def as_matrix(kernel: jax.Array) -> jax.Array:
    """[..., in, out] -> [out, n], in at least float32."""
    return at_least_float32(kernel).reshape(-1, kernel.shape[-1]).T


def _as_kernel(matrix: jax.Array, like: jax.Array) -> jax.Array:
    return matrix.T.reshape(like.shape)


def _times(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, vector, precision=EXACT)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), _TINY)


def leading_vectors(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Left [out] and right [n] singular vectors of the largest singular value."""
    left, _, right = jnp.linalg.svd(as_matrix(kernel), full_matrices=False)
    return left[:, 0], right[0]


def spectral_norm(kernel: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """left^T M right, a scalar: the spectral norm if these are its singular vectors."""
    return jnp.vdot(left, _times(as_matrix(kernel), right), precision=EXACT)


def sigma_reparameterize(
    kernel: jax.Array, gamma: jax.Array, right: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """gamma W / sigma with sigma = left^T M right (Zhai et al., 2023).

    One power iteration, left = M right / |.|, right = M^T left / |.|, whose vectors are
    constants of the gradient; sigma is differentiated. W = 0 has no direction: NaN.

    Args:
      kernel: [..., in, out].  gamma: scalar.  right: [n], of the last iteration.

    Returns:
      (kernel [..., in, out] in at least float32, right [n], sigma).
    """
    matrix = jax.lax.stop_gradient(as_matrix(kernel))
    left = _unit(_times(matrix, at_least_float32(right)))
    right = _unit(_times(matrix.T, left))
    sigma = spectral_norm(kernel, left, right)
    return at_least_float32(kernel) * (gamma / sigma), right, sigma


def iterate_left_right(
    kernel: jax.Array, left: jax.Array, iterations: int = 1
) -> tuple[jax.Array, jax.Array]:
    """right = M^T left / |.|, left = M right / |.|, `iterations` times; constants.

    Args:
      kernel: [..., in, out].  left: [out].

    Returns:
      (left [out], right [n]).
    """
    matrix, left = jax.lax.stop_gradient((as_matrix(kernel), at_least_float32(left)))

    def once(left):
        right = _unit(_times(matrix.T, left))
        return _unit(_times(matrix, right)), right

    vectors = once(left)
    for _ in range(iterations - 1):
        vectors = once(vectors[0])
    return vectors


def stable_rank_normalize(
    kernel: jax.Array, left: jax.Array, right: jax.Array, *, stable_rank: float | None
) -> jax.Array:
    """Spectral norm 1 and at most the given stable rank (Sanyal et al., 2020).

    A = M / sigma with sigma = left^T M right, S = left right^T, f = |A - S|_F; then

        S + (A - S) sqrt(stable_rank - 1) / f  if f > sqrt(stable_rank - 1), else A

    left and right are constants of the gradient; sigma, A - S and f are not.

    Args:
      kernel: [..., in, out].  left: [out].  right: [n].
      stable_rank: target, at least 1; None: spectral normalisation alone.

    Returns:
      [..., in, out] in at least float32.
    """
    left, right = jax.lax.stop_gradient((left, right))
    matrix = as_matrix(kernel) / spectral_norm(kernel, left, right)
    if stable_rank is not None:
        first = jnp.outer(left, right)
        rest = matrix - first
        size, most = safe_sqrt(jnp.sum(jnp.square(rest))), (stable_rank - 1) ** 0.5
        above = size > most
        factor = jnp.where(above, most / jnp.where(above, size, 1), 1)
        matrix = first + rest * factor
    return _as_kernel(matrix, kernel)


@REPARAMS.register("sigma_reparam")
@dataclasses.dataclass(frozen=True)
class SigmaReparam(Reparameterization):
    """gamma W / sigma(W) with a learned scalar gamma (Zhai et al., 2023).

    See `sigma_reparameterize`. Each training call makes one power iteration from the
    stored vector `right` [n] and stores it and `sigma`, the spectral norm that it
    found; at evaluation one iteration is made and not stored. It starts at the singular
    vector of the initial kernel.

    Attributes:
      gamma_init: "one" (the paper), or "spectral" (the released code for vision): the
        spectral norm of the initial kernel, which then is the effective one.
    """

    gamma_init: str = "one"

    own: ClassVar[tuple[str, ...]] = ("gamma",)
    held: ClassVar[tuple[str, ...]] = ("right", "sigma")

    def __post_init__(self):
        if self.gamma_init not in GAMMA_INITS:
            raise UserError(one_of("gamma_init", self.gamma_init, GAMMA_INITS))

    def create(self, layer, key):
        """`gamma`; `right` and `sigma`."""
        del key
        kernel = layer[KERNEL]
        left, right = leading_vectors(kernel)
        sigma = spectral_norm(kernel, left, right)
        gamma = sigma if self.gamma_init == "spectral" else jnp.ones(())
        return {"gamma": gamma.astype(kernel.dtype)}, {"right": right, "sigma": sigma}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        gamma = at_least_float32(own["gamma"])
        kernel, right, sigma = sigma_reparameterize(
            layer[KERNEL], gamma, state["right"]
        )
        moved = jax.lax.stop_gradient({"right": right, "sigma": sigma})
        return {**layer, KERNEL: kernel}, moved if train else state


@REPARAMS.register("stable_rank_normalization")
@dataclasses.dataclass(frozen=True)
class StableRankNormalization(Reparameterization):
    """Spectral norm 1, stable rank at most max(1, c min(out, n)) (Sanyal et al., 2020).

    See `stable_rank_normalize`. Each training call iterates from the stored vectors
    `left` [out] and `right` [n] and stores them; evaluation takes them as they are.
    They start as singular vectors of the initial kernel, where the published layer
    draws them at random, so that evaluation is right before training.

    Attributes:
      rank_ratio: c; above 0.9999, spectral normalisation alone.
      iterations: of the power method in a training call.
      keep_scale: multiply by the spectral norm again (not in the paper).
    """

    rank_ratio: float = 0.7
    iterations: int = 1
    keep_scale: bool = False

    held: ClassVar[tuple[str, ...]] = ("left", "right")

    def __post_init__(self):
        if self.rank_ratio <= 0 or self.iterations < 1:
            raise UserError(
                f"stable_rank_normalization needs rank_ratio > 0 and iterations >= 1, "
                f"got {self.rank_ratio} and {self.iterations}"
            )

    def create(self, layer, key):
        """No parameters; `left` and `right`."""
        del key
        left, right = leading_vectors(layer[KERNEL])
        return {}, {"left": left, "right": right}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del own
        kernel, vectors = layer[KERNEL], (state["left"], state["right"])
        if train:
            vectors = iterate_left_right(kernel, vectors[0], self.iterations)
            state = dict(zip(("left", "right"), vectors, strict=True))
        shape = as_matrix(kernel).shape
        rank = None if self.rank_ratio > 0.9999 else self.rank_ratio * min(shape)
        rank = rank if rank is None else max(rank, 1.0)
        normalized = stable_rank_normalize(kernel, *vectors, stable_rank=rank)
        if self.keep_scale:
            normalized *= spectral_norm(kernel, *vectors)
        return {**layer, KERNEL: normalized}, state
