"""What accelerators can do, as their makers state it.

TPUs: "System architecture" of the pages v4, v5e, v5p and v6e of the Cloud TPU
documentation. Interconnect is the bandwidth of a chip in one direction over all of its
links, half of the documented bidirectional one; of v4 it is 6 links of 50 GB/s (Jouppi
et al., 2023, TPU v4: an optically reconfigurable supercomputer). GPUs: NVIDIA's data
sheets of the SXM modules; interconnect is NVLink in one direction.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Peaks of one device.

    Attributes:
      name: as people call it.  kind: how `jax.Device.device_kind` begins.
      memory: bytes.  flops: bfloat16 FLOP/s.  bandwidth: of the memory, bytes/s.
      interconnect: bytes/s that a chip can send.
      clock: cycles of its cores a second; 0: not known.
      cores: TensorCores, which compute as one device.
      rows: that a matrix unit takes a cycle. With units of 128 x 128 (v6e: 256 x 256)
        these three imply the peak.
    """

    name: str
    kind: str
    memory: int
    flops: float
    bandwidth: float
    interconnect: float
    clock: float = 0.0
    cores: int = 1
    rows: int = 1


CHIPS = (
    Chip("v4", "TPU v4", 32 * GIB, 275e12, 1200e9, 300e9, 1.05e9, 2),
    Chip("v5e", "TPU v5 lite", 16 * GIB, 197e12, 819e9, 200e9, 1.5e9),
    Chip("v5p", "TPU v5", 95 * GIB, 459e12, 2765e9, 600e9, 1.75e9, 2),
    Chip("v6e", "TPU v6 lite", 32 * GIB, 918e12, 1638e9, 400e9, 1.75e9, 1, 2),
    Chip("A100 80 GB", "NVIDIA A100-SXM4-80GB", 80 * GIB, 312e12, 2039e9, 300e9),
    Chip("H100", "NVIDIA H100 80GB HBM3", 80 * GIB, 989e12, 3350e9, 450e9),
    Chip("H200", "NVIDIA H200", 141 * 10**9, 989e12, 4800e9, 450e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that calls itself `device_kind`; None if it is not in `CHIPS`."""
    fitting = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
