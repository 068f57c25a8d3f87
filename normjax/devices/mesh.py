"""Devices: one mesh with the axes data, fsdp, stage and tensor, and batches on it.

Examples are split over `data`, `fsdp` and `stage` together, parameters over `fsdp` and
`tensor` (see `sharding`), scanned layers over `stage` (see `pipeline`). The devices of
a process are neighbours in the mesh, so that process p of P holds the p-th P-th of the
rows of every batch, whatever the sizes of the axes.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from normjax.core.errors import UserError, one_of

DATA, FSDP, STAGE, TENSOR = "data", "fsdp", "stage", "tensor"
AXES = (DATA, FSDP, STAGE, TENSOR)
COPIES = (DATA, FSDP)
"""Axes along which a layer is computed on other examples with the same weights."""

BATCH_AXES = (*COPIES, STAGE)

REST = -1  # the size of an axis that takes what the others leave


def make_mesh(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices as `config.mesh` arranges them: a size per axis, -1 for the rest.

    Nothing is put on the devices: they may be those of a machine that is not there
    (`jax.experimental.topologies`).

    Args:
      config: with `mesh, batch_size, microbatches`.  devices: default: all.

    Raises:
      UserError: an axis that is unknown, sizes that do not make the number of devices,
        a tensor axis across processes, or a microbatch that does not divide by the
        devices it is split over.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(dict(config.mesh), len(devices))
    mesh = device_mesh(devices, **sizes)
    own = len(devices) // len({device.process_index for device in devices})
    if own % sizes[TENSOR]:
        raise UserError(
            f"config.mesh.tensor={sizes[TENSOR]} must lie within a process: it does "
            f"not divide the {own} devices of one"
        )
    shards = batch_shards(mesh)
    if config.batch_size % (config.microbatches * shards):
        many = config.microbatches > 1
        parts = f"{config.microbatches} microbatches on " if many else ""
        raise UserError(
            f"config.batch_size {config.batch_size} does not divide by {parts}"
            f"{shards} devices{_of_a_part(mesh)}"
        )
    return mesh


def on_these_devices(config: Any) -> Any:
    """`config` of a kept run, on its mesh or, where that cannot be, along `data`."""
    try:
        make_mesh(config)
    except UserError:
        config.mesh = {DATA: REST}
    return config


def axis_sizes(wanted: dict[str, int], count: int) -> dict[str, int]:
    """Sizes of all axes on `count` devices; an axis that is not wanted has size 1.

    Raises:
      UserError: as in `make_mesh`.
    """
    for name in wanted:
        if name not in AXES:
            raise UserError(one_of("axis of config.mesh:", name, AXES))
    sizes = {name: wanted.get(name, 1) for name in AXES}
    text = ", ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == REST]
    if any(size < 1 and size != REST for size in sizes.values()):
        raise UserError(f"config.mesh {text}: a size is at least 1, or -1 for the rest")
    if len(open_axes) > 1:
        raise UserError(f"config.mesh {text}: only one size can be -1")
    fixed = int(np.prod([size for size in sizes.values() if size != REST]))
    if open_axes and count % fixed == 0:
        return {**sizes, open_axes[0]: count // fixed}
    if fixed != count or open_axes:
        verb = "does not divide" if open_axes else "is not"
        hint = "" if open_axes else "; -1 takes what the other axes leave"
        raise UserError(
            f"config.mesh {text}: the product {fixed} {verb} the number of devices, "
            f"{count}{hint}"
        )
    return sizes


def device_mesh(
    devices: Sequence[Any],
    data: int = REST,
    fsdp: int = 1,
    tensor: int = 1,
    stage: int = 1,
) -> Mesh:
    """The mesh of these sizes, the devices of a process next to each other."""
    by_process = sorted(devices, key=lambda device: device.process_index)
    grid = np.asarray(by_process, dtype=object).reshape(data, fsdp, stage, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def several_processes(mesh: Mesh) -> bool:
    """Whether the devices belong to more than one process."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first dim is split over the axes of the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def split_rows(tree: Any, count: int) -> Any:
    """[B, ...] -> [M, B / M, ...]; example i goes to microbatch i % M.

    So every device keeps its own examples.
    """

    def split(x):
        return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, tree)


def join_rows(tree: Any) -> Any:
    """[M, B / M, ...] of `split_rows` -> [B, ...]."""

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)


def to_devices(
    batches: Iterable[Any],
    mesh: Mesh,
    ahead: int = 2,
    keep: Callable[[Any], np.ndarray] | None = None,
) -> Iterator[Any]:
    """Batches of this process as global arrays, transferred `ahead` of their use.

    Args:
      keep: which rows of a batch to take, bool [B]; None: all. What is left where some
        are not is on every device whole, unless it can be split.
    """
    sharding = split_batch(mesh)

    def put(batch):
        if keep is not None:
            return _put_some(batch, keep(batch), mesh)
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }

    queue = []
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue


def _put_some(batch: Any, kept: np.ndarray, mesh: Mesh) -> Any:
    """The rows `kept` of a batch of all processes, which wait for each other."""
    if several_processes(mesh):
        from jax.experimental import multihost_utils

        gather = functools.partial(multihost_utils.process_allgather, tiled=True)
        batch, kept = jax.tree.map(gather, (batch, kept))
    even = kept.sum() % batch_shards(mesh) == 0
    sharding = split_batch(mesh) if even else replicated(mesh)

    def put(rows):
        rows = rows[kept]
        return jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)

    return {name: put(rows) for name, rows in batch.items()}


def _of_a_part(mesh: Mesh) -> str:
    """What "devices" means where each example is on several of them."""
    same = mesh.shape[TENSOR]
    return f" (groups of {same}, config.mesh.tensor)" if same > 1 else ""
