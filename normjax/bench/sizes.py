"""What is measured on which platform: shapes, types, and how often."""

import dataclasses
from collections.abc import Sequence

import jax

SMALL = "--small"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the tables that are made on every platform.

    Attributes:
      norms: shapes of the inputs.  dtypes: of these.
      tokens: of a call of a sequence core.  lengths: of one sequence of them.
      batches: images of a call of a model; a training step takes the last number.
      dtype: of models and cores.  ways: of `torch_models.WAYS`.
      repeats: calls that are timed together, so that those of microseconds can be.
      workers: models that are compiled at once.
    """

    norms: Sequence[tuple[int, ...]]
    tokens: int
    lengths: Sequence[int]
    batches: Sequence[int]
    dtype: str = "bfloat16"
    dtypes: Sequence[str] = ("float32", "bfloat16")
    ways: Sequence[str] = ("torch.compile",)
    repeats: int = 10
    workers: int = 8


_NORMS = ((256, 196, 384), (32, 512, 768), (64, 56, 56, 64))
_LENGTHS = (1024, 4096, 16384, 65536)

ACCELERATOR = Sizes(_NORMS, 65536, _LENGTHS, (256,))
CPU = Sizes(
    _NORMS,
    4096,
    _LENGTHS[:2],
    (1, 16),
    dtype="float32",
    ways=("torch", "torch.compile"),
    repeats=1,
    workers=1,
)
TINY = dataclasses.replace(
    CPU, norms=((2, 4, 32), (2, 2, 2, 32)), tokens=64, lengths=(32, 64), batches=(1, 2)
)


def sizes_for(argv: Sequence[str]) -> tuple[list[str], Sizes]:
    """Names on the command line, and sizes: `--small` ones or the platform's."""
    names = [name for name in argv[1:] if name != SMALL]
    if SMALL in argv:
        return names, TINY
    return names, CPU if jax.default_backend() == "cpu" else ACCELERATOR


def device_name() -> str:
    """What was measured, as its maker calls it."""
    return jax.devices()[0].device_kind
