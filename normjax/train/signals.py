"""Stop at the next step, not in the middle of one."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Notes SIGTERM and SIGINT while it is entered; a second SIGINT raises at once.

    Attributes:
      received: whether a signal has come.
    """

    def __init__(self):
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
