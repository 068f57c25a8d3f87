"""Published PyTorch checkpoints in and out; `python -m normjax.convert` is the command.

    converted = convert.from_torch(model, convert.read(Path("checkpoint.safetensors")))
    state = convert.to_torch(model, converted.variables)

One table per family says where each array lives and how it is laid out
(`convert.layouts`); both directions follow it, so one undoes the other.
"""

from normjax.convert.files import load, read, unwrapped, write
from normjax.convert.names import reads_images
from normjax.convert.results import Converted, Loose
from normjax.convert.state import (
    arguments_of,
    from_torch,
    loosely_from_torch,
    to_torch,
)

# Of use to the commands alone.
from normjax.convert.state import channels_of as channels_of
from normjax.convert.state import grouped as grouped
from normjax.convert.state import norm_kind as norm_kind
from normjax.convert.state import rebuilt_norm as rebuilt_norm
from normjax.convert.state import size_of as size_of

__all__ = [
    "Converted",
    "Loose",
    "arguments_of",
    "from_torch",
    "load",
    "loosely_from_torch",
    "read",
    "reads_images",
    "to_torch",
    "unwrapped",
    "write",
]
