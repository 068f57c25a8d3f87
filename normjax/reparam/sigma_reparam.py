"""sigmaReparam: kernels over their spectral norm."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.reparam.base import KERNEL, REPARAMS, Reparameterization
from normjax.reparam.spectral import (
    as_matrix,
    leading_vectors,
    spectral_norm,
    times,
    unit,
)

GAMMA_INITS = ("one", "spectral")


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

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.diag(jnp.array([4.0, 1.0]))  # spectral norm 4
      >>> gamma, right = jnp.array(1.0), jnp.array([1.0, 0.0])
      >>> new, right, sigma = reparam.sigma_reparameterize(kernel, gamma, right)
      >>> print(new)
      [[1.   0.  ]
       [0.   0.25]]
      >>> float(sigma)
      4.0
    """
    matrix = jax.lax.stop_gradient(as_matrix(kernel))
    left = unit(times(matrix, at_least_float32(right)))
    right = unit(times(matrix.T, left))
    sigma = spectral_norm(kernel, left, right)
    return at_least_float32(kernel) * (gamma / sigma), right, sigma


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

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> sigma = reparam.SigmaReparam()
      >>> layer = {"kernel": jnp.diag(jnp.array([4.0, 1.0]))}
      >>> own, state = sigma.create(layer, jax.random.key(0))
      >>> new, state = sigma.effective(layer, own, state, train=True)
      >>> print(jnp.diag(new["kernel"]), sorted(own), sorted(state))
      [1.   0.25] ['gamma'] ['right', 'sigma']
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
