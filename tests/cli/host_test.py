"""libtpu where there is no TPU: silent, and only there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normjax.cli.host import may_have_tpu

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x1ae0", "0x120000", True),  # an accelerator
        ("0x1ae0", "0xff0000", True),  # of no class
        ("0x1ae0", "0x020000", False),  # a network card
        ("0x1ae0", "0x010802", False),  # a disk
        ("0x10de", "0x030200", False),  # of somebody else's
    ],
)
def test_devices(tmp_path, vendor, kind, expected):
    device = tmp_path / "sys/bus/pci/devices/0000:00:05.0"
    device.mkdir(parents=True)
    assert not may_have_tpu(tmp_path)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    assert may_have_tpu(tmp_path) == expected


@pytest.mark.parametrize("node", ["dev/accel0", "dev/vfio/0"])
def test_nodes(tmp_path, node):
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/vfio").touch()
    assert not may_have_tpu(tmp_path)
    (tmp_path / node).touch()
    assert may_have_tpu(tmp_path)


@pytest.mark.skipif(may_have_tpu(), reason="libtpu is right to speak here")
def test_a_command_says_nothing_of_libtpu(tmp_path):
    """It counts devices, then refuses: that is all on stderr."""
    hidden = ("JAX_PLATFORMS", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
    environ = {k: v for k, v in os.environ.items() if k not in hidden}
    environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a process beside would silence it
    argv = ["train.py", "--config=digits", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *argv, "--config.mesh.fsdp=31"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: config.mesh data=-1, fsdp=31")
