"""Unstructured magnitude pruning of kernels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.errors import UserError
from normjax.core.scanned import is_scanned

KERNEL = "kernel"


class Pruned(NamedTuple):
    """Parameters with zeros.

    Attributes:
      params: NumPy, the tree that was given.
      zeros: by path of a kernel, (its zeros, its size).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import prune
      >>> params = {"fc": {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}}
      >>> pruned = prune.magnitude_pruned(params, sparsity=0.5)
      >>> pruned.zeros
      {'fc/kernel': (2, 4)}
    """

    params: dict[str, Any]
    zeros: dict[str, tuple[int, int]]


def magnitude_pruned(
    params: Mapping[str, Any], sparsity: float, scanned: tuple[str, ...] = ()
) -> Pruned:
    """`params` with the smallest round(sparsity * n) of n entries of each kernel 0.

    Kernels are the arrays called `kernel` with two dims or more; entries are ranked by
    absolute value within their kernel (uniform magnitude pruning). Ranked all together,
    layers that start small, as classifiers do, would vanish first. Everything else,
    norms and biases among it, stays.

    Args:
      params: a tree of parameters, by layer and name.
      sparsity: in [0, 1).
      scanned: of the model; each of its layers has a kernel of its own (see
        `core.scanned`).

    Raises:
      UserError: a sparsity outside, or parameters without kernels.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import prune
      >>> params = {"fc": {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}}
      >>> print(prune.magnitude_pruned(params, sparsity=0.5).params["fc"]["kernel"])
      [[ 0. -4.]
       [ 3.  0.]]
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity must lie in [0, 1), got {sparsity}")
    flat: dict[Any, Any] = dict(flatten_dict(unfreeze(dict(params))))
    zeros = {}
    for path, kernel in flat.items():
        several = is_scanned("/".join(path), scanned)
        if path[-1] == KERNEL and np.ndim(kernel) > 1 + several:
            flat[path] = made = np.array(kernel)
            layers = made.reshape(len(made) if several else 1, -1)
            count = round(sparsity * layers.shape[1])
            smallest = np.argsort(np.abs(layers), 1, kind="stable")[:, :count]
            np.put_along_axis(layers, smallest, 0, 1)
            zeros["/".join(path)] = count * len(layers), made.size
    if not zeros:
        raise UserError("the model has no kernels to prune")
    return Pruned(unflatten_dict(flat), zeros)
