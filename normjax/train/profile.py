"""A profiler's trace of some steps, on request."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from normjax.core.console import console
from normjax.core.files import upload
from normjax.core.paths import is_local

SETTLED = 10
"""Steps of a start before the first one that is traced: caches and queues fill."""


class Profile:
    """Writes a trace of `count` steps into `folder`; of none, does nothing.

    TensorBoard's profile plugin, xprof and Perfetto show it: what ran on the host and
    on each device, by operation.

    Args:
      start, end: steps between which the loop runs.
      folder: in a bucket, gets what is traced at the end.
    """

    def __init__(self, folder: Path, count: int, start: int, end: int):
        self._folder = folder
        self._first = max(start, min(start + SETTLED, end - count))
        self._last = min(self._first + count, end)
        self._running = False
        self._traced = folder

    def at(self, step: int, results: Any) -> None:
        """Begin or end the trace if it is time.

        Args:
          step: steps done.  results: of the newest; the trace ends when they are there.
        """
        if step == self._first < self._last and not self._running:
            self._running = True
            if not is_local(self._folder):
                self._traced = Path(tempfile.mkdtemp())
            jax.profiler.start_trace(self._traced)
        elif step == self._last and self._running:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """End a trace that still runs."""
        if self._running:
            self._running = False
            self._first = self._last
            jax.profiler.stop_trace()
            if self._traced != self._folder:
                upload(self._traced, self._folder)
                shutil.rmtree(self._traced)
            console.print(f"trace in {self._folder}")
