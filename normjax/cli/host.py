"""Settings of the host process: what costs nothing and saves time, or noise."""

import ctypes
import os
import sys
from pathlib import Path

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_GOOGLE, _DISK_OR_NETWORK = "0x1ae0", ("0x01", "0x02")
"""A vendor of PCI devices, and the classes of those that every VM of theirs has."""

NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu wants to know of a TPU VM; where there is none, any answer will do."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one.

    By default buffers above 32 MB are given back to the kernel when a step ends, and
    the next step gets them page by page, each one zeroed: 190,000 page faults and a
    fifth of the CPU time of a training step of DeiT-tiny with 16 images. Only the main
    arena can grow that far, so there is one. To be called before other threads
    allocate. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def answer_libtpu() -> None:
    """Tell libtpu what it would ask a metadata server, and complain of on stderr.

    JAX loads it wherever it is installed. What the environment says already stays. Not
    for a machine with TPUs; to be called before JAX looks for its devices.
    """
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)


def may_have_tpu(root: Path = Path("/")) -> bool:
    """Whether anything on this machine looks like a TPU.

    Args:
      root: of the file system.
    """
    nodes = "dev/accel[0-9]*", "dev/vfio/[0-9]*"
    if any(any(root.glob(pattern)) for pattern in nodes):
        return True
    devices = (root / "sys/bus/pci/devices").glob("*")
    return any(
        _first_line(device / "vendor") == _GOOGLE
        and not _first_line(device / "class").startswith(_DISK_OR_NETWORK)
        for device in devices
    )


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
