"""The mesh: sizes of axes, which devices lie where, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.devices import mesh as meshes
from normjax.train.experiment import build_experiment
from tests.train.tiny import tiny_config


@pytest.mark.parametrize(
    ("wanted", "count", "sizes"),
    [
        ({}, 1, (1, 1, 1, 1)),
        ({"data": -1}, 8, (8, 1, 1, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, 8, (2, 2, 1, 2)),
        ({"data": 2, "fsdp": -1, "tensor": 1}, 8, (2, 4, 1, 1)),
        ({"data": 1, "fsdp": 1, "tensor": -1}, 3, (1, 1, 1, 3)),
        ({"data": 2, "fsdp": 4}, 8, (2, 4, 1, 1)),
        ({"data": -1, "fsdp": 8}, 8, (1, 8, 1, 1)),
        ({"data": -1, "stage": 4}, 8, (2, 1, 4, 1)),
    ],
)
def test_sizes(wanted, count, sizes):
    assert tuple(meshes.axis_sizes(wanted, count).values()) == sizes


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"tensr": 2}, "axis of config.mesh: 'tensr'; did you mean 'tensor'"),
        ({"data": -1, "fsdp": -1}, "only one size can be -1"),
        ({"data": -1, "fsdp": 0}, "fsdp=0, stage=1, tensor=1: a size is at least 1"),
        ({"data": -2}, "a size is at least 1"),
        (
            {"data": 2, "fsdp": 2},
            "stage=1, tensor=1: the product 4 is not the number of devices, 8",
        ),
        (
            {"data": -1, "fsdp": 3},
            "the product 3 does not divide the number of devices, 8",
        ),
    ],
)
def test_sizes_that_are_refused(wanted, message):
    with pytest.raises(UserError) as caught:
        meshes.axis_sizes(wanted, 8)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device that is not there."""

    id: int
    process_index: int


def devices_of(*processes):
    return [Device(i, process) for i, process in enumerate(processes)]


def arranged(config, *processes):
    """Process of each device of the mesh, as an array [data, fsdp, tensor]; 1 stage."""
    mesh = meshes.make_mesh(config, devices_of(*processes))
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return processes.squeeze(2)


def test_devices_of_a_process_are_neighbours():
    config = tiny_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    grid = arranged(config, 0, 1, 0, 1, 1, 0, 1, 0)
    np.testing.assert_array_equal(grid, [[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    grid = arranged(tiny_config(mesh__fsdp=4), 0, 1, 0, 1)
    np.testing.assert_array_equal(grid, [[[0], [0], [1], [1]]])


def test_a_process_holds_a_contiguous_share_of_the_batch():
    """As the data pipeline gives it: process p of P the p-th P-th of the rows."""
    config = tiny_config(mesh__fsdp=2, mesh__tensor=2)
    grid = arranged(config, 1, 0, 1, 0, 2, 3, 2, 3)
    by_shard = grid.reshape(4, 2)
    assert (by_shard == np.arange(4)[:, None]).all()


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        (
            {"mesh__tensor": 4},
            (0, 0, 1, 1),
            "config.mesh.tensor=4 must lie within a process: it does not divide the 2 "
            "devices of one",
        ),
        ({"batch_size": 6}, (0, 0, 1, 1), "batch_size 6 does not divide by 4 devices"),
        (
            {"batch_size": 12, "microbatches": 2},
            (0,) * 4,
            "batch_size 12 does not divide by 2 microbatches on 4 devices",
        ),
        (
            {"batch_size": 5, "mesh__tensor": 2},
            (0,) * 4,
            "does not divide by 2 devices (groups of 2, config.mesh.tensor)",
        ),
    ],
)
def test_meshes_that_are_refused(changes, processes, message):
    with pytest.raises(UserError) as caught:
        arranged(tiny_config(**changes), *processes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_devices_that_share_examples_need_not_divide_the_batch():
    config = tiny_config(batch_size=6, mesh__tensor=2)
    assert meshes.batch_shards(meshes.make_mesh(config, devices_of(*[0] * 4))) == 2


def test_batches_arrive_whole_and_in_order():
    mesh = meshes.device_mesh(jax.devices()[:4], fsdp=2)
    sent = [{"x": np.arange(16).reshape(8, 2) + i} for i in range(5)]
    received = list(meshes.to_devices(sent, mesh))
    for ours, theirs in zip(received, sent, strict=True):
        np.testing.assert_array_equal(ours["x"], theirs["x"])
    starts = {s.device: s.index[0].start for s in received[0]["x"].addressable_shards}
    assert [starts[device] for device in mesh.devices.flat] == [0, 2, 4, 6]


def test_an_experiment_on_given_devices():
    experiment = build_experiment(tiny_config(), jax.devices()[1:3])
    assert list(experiment.mesh.devices.flat) == jax.devices()[1:3]
    batch = experiment.abstract_batch()
    assert batch["image"].shape == (16, 8, 8, 1)
    assert batch["image"].sharding.shard_shape(batch["image"].shape) == (8, 8, 8, 1)
    assert set(experiment.abstract_batch(train=False)) == {"image", "label", "mask"}
