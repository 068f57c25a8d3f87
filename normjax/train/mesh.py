"""Devices: one mesh, the state replicated, the batch split along `data`."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.core.errors import UserError


def make_mesh(batch_size: int, microbatches: int = 1) -> Mesh:
    """All devices along the axis `data`.

    Raises:
      UserError: a microbatch does not divide by the number of devices.
    """
    devices = jax.devices()
    if batch_size % (microbatches * len(devices)):
        parts = f"{microbatches} microbatches on " if microbatches > 1 else ""
        raise UserError(
            f"config.batch_size {batch_size} does not divide by {parts}"
            f"{len(devices)} devices"
        )
    return Mesh(np.asarray(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first dim is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batches: Iterable[Any], mesh: Mesh, ahead: int = 2) -> Iterator[Any]:
    """Batches of this process as global arrays, transferred `ahead` of their use."""
    sharding = split_batch(mesh)

    def put(batch):
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
