"""What a checkpoint that fails leaves behind in memory: collected, and silent."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def collecting_leftovers() -> Iterator[None]:
    """Collect what a failure leaves behind now, not at a time of its own."""
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise


class UnlessLeftover:
    """`sys.unraisablehook` that says nothing of what a failed checkpoint leaves behind.

    Of the reads and writes beside the one whose failure is raised, each would print a
    traceback of its own: tensorstore finds the event loop closed to which it reports
    their ends, and coroutines of theirs are collected before they have ended.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    @classmethod
    def install(cls) -> None:
        """Once a process."""
        if not isinstance(sys.unraisablehook, cls):
            sys.unraisablehook = cls(sys.unraisablehook)

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if unraisable.object is None and str(error) == "Event loop is closed":
            return
        while error is not None:
            if isinstance(error, GeneratorExit):
                return
            error = error.__cause__ or error.__context__
        self._hook(unraisable)
