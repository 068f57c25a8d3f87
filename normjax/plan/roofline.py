"""A bound on the time of a step: the slowest of computing, memory and interconnect.

Williams, Waterman & Patterson, 2009, Roofline; utilisation of the peak (MFU) as in
PaLM (Chowdhery et al., 2022): of the operations that the model needs, not of those that
are done twice to save memory.
"""

from typing import NamedTuple

from normjax.devices.chips import Chip


class Roofline(NamedTuple):
    """Seconds of one step if nothing but the named resource held it up.

    The three overlap at best, so a step takes the longest of them or more.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self)

    @property
    def limit(self) -> str:
        """What it is bound by."""
        return max(zip(self, self._fields, strict=True))[1]


def roofline(chip: Chip, *, flops: float, moved: float, sent: float) -> Roofline:
    """The bound of a device.

    Args:
      flops: operations of matrix products and convolutions, at the bfloat16 peak, which
        is what TPUs multiply float32 at by default.
      moved: bytes through its memory.  sent: bytes to other devices.
    """
    return Roofline(
        compute=flops / chip.flops,
        memory=moved / chip.bandwidth,
        interconnect=sent / chip.interconnect,
    )


def utilisation(chip: Chip, *, model_flops: float, seconds: float) -> float:
    """The most that the model can use of a device's peak: a fraction.

    Args:
      model_flops: of the device's share, recomputation left out.
    """
    return model_flops / (seconds * chip.flops) if seconds else 0.0
