"""What functions with hand-written gradients or kernels owe to several devices."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def match_varying(*trees: Any) -> tuple[Any, ...]:
    """The arguments, all varying over every mesh axis that one of them varies over.

    Inside `shard_map` a parameter is the same on all shards while the data differs. A
    `custom_vjp` rule gives the parameter's gradient of its own shard; the adjoint of
    the cast made here is the sum over the shards. Outside `shard_map` nothing happens.
    """
    leaves = jax.tree.leaves(trees)
    axes = frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in leaves))

    def cast(leaf):
        missing = tuple(axes - jax.typeof(leaf).mat.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, trees)


_Division = tuple[Mesh, tuple[str, ...]]
_DIVIDED = contextvars.ContextVar[_Division | None]("divided", default=None)


@contextlib.contextmanager
def batch_divided(mesh: Mesh, axes: tuple[str, ...]) -> Iterator[None]:
    """What is traced inside has its batch divided along `axes` and nothing else."""
    token = _DIVIDED.set((mesh, axes))
    try:
        yield
    finally:
        _DIVIDED.reset(token)


def division() -> _Division | None:
    """(mesh, axes) of the `batch_divided` around, if there is one."""
    return _DIVIDED.get()


def over_batch(
    function: Callable[..., Any], batched: tuple[Any, ...], *rest: Any
) -> Any:
    """`function(*batched, *rest)`, by each device for its part of the batch.

    So inside of `batch_divided`, where the devices divide the batch without rest;
    elsewhere, and within `shard_map`, it is called as it is.

    Args:
      function: to arrays [B, ...], of examples that know nothing of each other.
      batched: trees of arrays [B, ...].
      rest: trees of arrays that are the same for all examples.
    """
    divided = division()
    if divided is None or jax.sharding.get_abstract_mesh().manual_axes:
        return function(*batched, *rest)
    mesh, axes = divided
    size = jax.tree.leaves(batched)[0].shape[0]
    if size % math.prod(mesh.shape[axis] for axis in axes):
        return function(*batched, *rest)
    part, whole = PartitionSpec(axes), PartitionSpec()
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(part,) * len(batched) + (whole,) * len(rest),
        out_specs=part,
        check_vma=False,
    )
    return mapped(*batched, *rest)
