"""Stable Rank Normalization."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.reparam.base import KERNEL, REPARAMS, Reparameterization, safe_sqrt
from normjax.reparam.spectral import (
    as_kernel,
    as_matrix,
    iterate_left_right,
    leading_vectors,
    spectral_norm,
)


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

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.diag(jnp.array([4.0, 2.0, 2.0]))
      >>> first = jnp.array([1.0, 0.0, 0.0])
      >>> new = reparam.stable_rank_normalize(kernel, first, first, stable_rank=1.125)
      >>> print(jnp.diag(new))  # squares add up to 1.125
      [1.   0.25 0.25]
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
    return as_kernel(matrix, kernel)


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

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> srn = reparam.StableRankNormalization(rank_ratio=1.0)  # spectral norm alone
      >>> layer = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
      >>> own, state = srn.create(layer, jax.random.key(0))
      >>> new, _ = srn.effective(layer, own, state, train=False)
      >>> print(jnp.diag(new["kernel"]), sorted(state))
      [1.  0.5] ['left', 'right']
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
