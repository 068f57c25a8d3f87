"""How models and their layers tell `fusion` what is linear in them: no algorithm.

Every layer of a residual branch has

    reads   paths inside it of the linear layers that together are all that reads its
            input; empty if something else reads it
    writes  path inside it of the Dense or Conv whose output is the layer's, or None

as attributes of its class or as properties. A layer without them says neither.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class FoldSite:
    """One norm of a model and the linear layers next to it.

    Attributes:
      path: of the norm's variables, "blocks_0/norm1".
      norm: the unbound norm module, or None where the model has none there.
      readers: paths of the Dense and (unpadded) Conv layers that together are all that
        reads the norm's output; empty if something else reads it.
      writer: path of the Dense or Conv whose output alone the norm reads, or None.
      scale: constant factor between the norm's output and the readers.
      obstacle: why nothing may be folded here, for the report.
    """

    path: str
    norm: Any
    readers: tuple[str, ...] = ()
    writer: str | None = None
    scale: float = 1.0
    obstacle: str = ""


def reads_of(layer: Any) -> tuple[str, ...]:
    """`reads` of a layer, empty if it does not say."""
    return getattr(layer, "reads", ())


def writes_of(layer: Any) -> str | None:
    """`writes` of a layer, None if it does not say."""
    return getattr(layer, "writes", None)


@dataclasses.dataclass(frozen=True)
class Stream:
    """What surrounds the residual stream of a model.

    Attributes:
      writers: paths of all parameters that are added into the stream: linear layers
        and tables.
      norms: paths of all norms that read it; nothing else does.
      obstacle: why the stream cannot be changed, for the error.
    """

    writers: tuple[str, ...]
    norms: tuple[str, ...]
    obstacle: str = ""
