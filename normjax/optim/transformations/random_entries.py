"""A few weights of every output that are trained, drawn once."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.core.scanned import is_scanned
from normjax.optim.base import TRANSFORMATIONS, of_updates
from normjax.optim.groups import path_name


class RandomEntries(NamedTuple):
    """State of `random_entries`: bool trees of the parameters, drawn once."""

    mask: Any


@TRANSFORMATIONS.register("random_entries")
@of_updates
def random_entries(
    *, per_output: int = 2, seed: int = 0, scanned: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """u <- u m, m being 1 at `per_output` random inputs of an output, for good.

    Of kernels [..., in, out], whose rest stays what it was; vectors are left alone. Two
    an output are as many parameters as a BatchNorm behind it has (Frankle, Schwab &
    Morcos, 2021).

    Args:
      per_output: entries; all of an output that has fewer.
      seed: that m follows from, with the path of the parameter.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.random_entries(per_output=1)
      >>> params = {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}
      >>> found, _ = transformation.update(params, transformation.init(params), params)
      >>> print(found["kernel"].sum(0), found["bias"])
      [1. 1. 1.] [1. 1. 1.]
    """

    def mask(path: Any, w: jax.Array) -> jax.Array:
        name = path_name(path)
        layers = int(is_scanned(name, scanned))
        if not name.endswith("kernel") or w.ndim < 2 + layers:
            return jnp.ones((), bool)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        shape = (*w.shape[:layers], -1, w.shape[-1])
        draws = jax.random.uniform(key, w.shape).reshape(shape)
        rank = jnp.argsort(jnp.argsort(draws, -2), -2)
        return (rank < per_output).reshape(w.shape)

    def update(updates: Any, state: Any, params: Any = None):
        del params
        kept = jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, state.mask
        )
        return kept, state

    return optax.GradientTransformation(
        lambda params: RandomEntries(jax.tree_util.tree_map_with_path(mask, params)),
        update,
    )
