"""Published PyTorch checkpoints in and out; `python -m normjax.convert` is the command.

    converted = convert.from_torch(model, convert.read(Path("checkpoint.safetensors")))
    state = convert.to_torch(model, converted.variables)

One table per family says where each array lives and how it is laid out
(`convert.layouts`); both directions follow it, so one undoes the other.
"""

from normjax.convert.files import load, read, unwrapped, write
from normjax.convert.names import reads_images
from normjax.convert.state import (
    Converted,
    Loose,
    arguments_of,
    channels_of,
    from_torch,
    grouped,
    loosely_from_torch,
    norm_kind,
    rebuilt_norm,
    size_of,
    to_torch,
)

__all__ = [
    "Converted",
    "Loose",
    "arguments_of",
    "channels_of",
    "from_torch",
    "grouped",
    "load",
    "loosely_from_torch",
    "norm_kind",
    "read",
    "reads_images",
    "rebuilt_norm",
    "size_of",
    "to_torch",
    "unwrapped",
    "write",
]
