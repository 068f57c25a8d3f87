"""Reads files of TensorBoard events."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events_in(content):
    """The events of a file."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
