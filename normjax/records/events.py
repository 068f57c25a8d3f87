"""TensorBoard events of a run, on a file system and in a bucket."""

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normjax.core.files import write
from normjax.core.paths import is_local

SENT = 2**18
"""Bytes of a file of events in a bucket, about: as it grows, it is sent again."""


BINS = 30
"""Of histograms."""

Arrays = Mapping[str, np.ndarray]


def open_events(workdir: Path, resumed_step: int) -> "Events | SentEvents":
    """Events that go on after `resumed_step`: later ones of before are purged."""
    kind = Events if is_local(workdir) else SentEvents
    return kind(workdir, resumed_step)


class Events:
    """Scalars by step, for TensorBoard; written by a thread, some time later."""

    def __init__(self, workdir: Path, resumed_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(workdir), purge_step=resumed_step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the scalars of `record` at its "step"."""
        for name, value in _scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def show(self, step: int, images: Arrays, histograms: Arrays) -> None:
        """Write images, uint8 [H, W, C], and histograms of values."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")
        bins: Any = BINS
        for name, values in _finite(histograms).items():
            self._writer.add_histogram(name, values, step, bins=bins)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class SentEvents:
    """Files of a folder of this machine, of which the last is sent with each record."""

    def __init__(self, workdir: Path, resumed_step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._workdir, self._files = workdir, 0
        self._lock = threading.Lock()  # scalars come from a thread of their own
        self._folder = tempfile.TemporaryDirectory()
        self._begin()
        began = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=resumed_step + 1, session_log=began))

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the scalars of `record` at its "step", and send them."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = _scalars(record).items()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        self._send(record["step"], values)

    def show(self, step: int, images: Arrays, histograms: Arrays) -> None:
        """Write and send images, uint8 [H, W, C], and histograms of values."""
        from tensorboardX import summary

        found = [summary.image(k, x, dataformats="HWC") for k, x in images.items()]
        histograms = _finite(histograms)
        found += [summary.histogram(k, x, BINS) for k, x in histograms.items()]
        self._send(step, [value for one in found for value in one.value])

    def _send(self, step: int, values: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        with self._lock:
            self._writer.write_event(event)
            self._writer.flush()
            (file,) = Path(self._folder.name).iterdir()
            content = file.read_bytes()
            write(self._workdir / file.name, content)
            if len(content) > SENT:
                self._writer.close()
                file.unlink()
                self._begin()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._folder.cleanup()

    def _begin(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        prefix = str(Path(self._folder.name) / "events")
        self._writer = EventsWriter(prefix, f".{self._files}")
        self._files += 1


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name != "step"}


def _finite(histograms: Arrays) -> dict[str, np.ndarray]:
    """Those of values that are finite; of others there is no histogram."""
    kept = {name: values[np.isfinite(values)] for name, values in histograms.items()}
    return {name: values for name, values in kept.items() if values.size}
