"""Kernels of which the singular values alone are trained."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.reparam.base import KERNEL, REPARAMS, Arrays, Reparameterization
from normjax.reparam.spectral import as_kernel, as_matrix


@REPARAMS.register("singular_values")
@dataclasses.dataclass(frozen=True)
class SingularValues(Reparameterization):
    """W' = U diag(s + e) V^T of W = U diag(s) V^T: SINDER's repair (Wang et al., 2024).

    e, `shift` [min(out, n)], starts at 0, in the order of falling s; U and V are state
    that stays. W is meant to stay as it is (`config.optim.trainable="shift"`).

    Attributes:
      splits: of which the kernel's outputs consist; the last alone is changed. 3 for a
        layer of queries, keys and values: the values.

    Raises:
      UserError: outputs that are no multiple of `splits`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = (
      ...     reparam.SingularValues(),
      ...     {"kernel": jnp.diag(jnp.array([1.0, 4.0]))},
      ... )
      >>> own, state = rule.create(layer, jax.random.key(0))
      >>> own = {"shift": jnp.array([-2.0, 0.0])}  # of the largest
      >>> print(rule.effective(layer, own, state, train=True)[0]["kernel"].round(3))
      [[1. 0.]
       [0. 2.]]
    """

    splits: int = 1

    ranges: ClassVar[Mapping[str, Range]] = {"splits": POSITIVE}
    own: ClassVar[tuple[str, ...]] = ("shift",)
    held: ClassVar[tuple[str, ...]] = ("left", "right")

    def create(self, layer: Arrays, key: jax.Array) -> tuple[Arrays, Arrays]:
        """`shift`; `left` and `right`."""
        del key
        matrix = as_matrix(self._changed(layer[KERNEL]))
        left, s, right = jnp.linalg.svd(matrix, full_matrices=False)
        return {"shift": jnp.zeros_like(s)}, {"left": left, "right": right}

    def effective(
        self, layer: Arrays, own: Arrays, state: Arrays, *, train: bool
    ) -> tuple[Arrays, Arrays]:
        """`kernel` is replaced; see the class."""
        del train
        kernel = at_least_float32(layer[KERNEL])
        last = self._changed(kernel)
        left, right = jax.lax.stop_gradient((state["left"], state["right"]))
        shift = at_least_float32(own["shift"])
        added = jnp.matmul(left * shift[None], right, precision=EXACT)
        kept = kernel[..., : kernel.shape[-1] - last.shape[-1]]
        new = jnp.concatenate([kept, last + as_kernel(added, last)], -1)
        return {**layer, KERNEL: new}, state

    def _changed(self, kernel: jax.Array) -> jax.Array:
        units = kernel.shape[-1]
        if units % self.splits:
            raise UserError(f"singular_values: {units} outputs in {self.splits} splits")
        return kernel[..., units - units // self.splits :]
