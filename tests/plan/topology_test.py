"""Names of topologies and meshes; devices of this machine."""

import pytest

from normjax.core.errors import UserError
from normjax.devices.chips import chip_of
from normjax.plan.__main__ import parse_mesh
from normjax.plan.topology import devices_of, prepare


def test_meshes():
    assert parse_mesh("fsdp=4") == {"data": -1, "fsdp": 4}
    assert parse_mesh("data=2,fsdp=4,tensor=2") == {"data": 2, "fsdp": 4, "tensor": 2}
    for wrong in ("", "fsdp", "fsdp=many", "data=2,,"):
        with pytest.raises(UserError, match="sizes by axis"):
            parse_mesh(wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", "unknown --topology 'v5x'; did you mean"),
        ("v5e", "v5e takes 2 size"),
        ("v5e:4", "v5e takes 2 size"),
        ("v5e:4x4x4", "v5e takes 2 size"),
        ("v5e:0x4", "v5e takes 2 size"),
        ("v4:4x4", "v4 takes 3 size"),
        ("cpu:2x2", "cpu takes 1 size"),
        ("cpu:many", "cpu takes 1 size"),
    ],
)
def test_wrong_names(name, message):
    for function in (devices_of, lambda name: prepare([name])):
        with pytest.raises(UserError, match=message):
            function(name)


def test_devices_of_this_machine():
    assert len(devices_of("cpu:2")) == 2
    assert len(devices_of("cpu")) == 4  # of the tests
    with pytest.raises(UserError, match="4 devices are there"):
        devices_of("cpu:8")
    with pytest.raises(UserError, match="finds no gpu"):
        devices_of("gpu")


@pytest.mark.parametrize(
    ("name", "count", "hosts", "chip"),
    [
        ("v4:2x2x4", 16, 4, "v4"),
        ("v5e:4x4", 16, 4, "v5e"),
        ("v5e:1x1", 1, 1, "v5e"),
        ("v5p:2x2x2", 8, 2, "v5p"),
        ("v6e:2x4", 8, 2, "v6e"),
    ],
)
def test_devices_of_tpus(name, count, hosts, chip):
    pytest.importorskip("libtpu")
    prepare([name])
    devices = devices_of(name)
    assert len(devices) == count
    assert len({device.process_index for device in devices}) == hosts
    found = chip_of(devices[0].device_kind)
    assert found and found.name == chip


def test_slices_that_libtpu_refuses():
    pytest.importorskip("libtpu")
    prepare(["v5e:3x3"])
    with pytest.raises(UserError, match=r"--topology=v5e:3x3: .*3x3"):
        devices_of("v5e:3x3")
