"""Stop at the next step, not in the middle of one."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

EXIT_ENDED = 128 + signal.SIGINT
"""Exit code after a second Ctrl-C, and of commands that Ctrl-C ends."""


class Stopped(Exception):
    """A signal came during what takes long; what was to be computed is not."""


class Interrupt:
    """Notes SIGTERM and SIGINT while it is entered, and says so at once.

    A second SIGINT ends the process; in an interactive session it raises
    KeyboardInterrupt. The line comes from a thread of its own, since the main one may
    be compiling, or waiting for a device.

    Attributes:
      received: whether a signal has come.
    """

    def __init__(self):
        self.received = False
        self._presses = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._ear, self._mouth = os.pipe()
            os.set_blocking(self._mouth, False)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
            self._before = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._before)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        os.close(self._mouth)
        self._listener.join()
        os.close(self._ear)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received and number == signal.SIGINT and _is_interactive():
            raise KeyboardInterrupt
        self.received = True

    def _listen(self) -> None:
        while numbers := os.read(self._ear, 1):
            self._answer(numbers[0])

    def _answer(self, number: int) -> None:
        if number == signal.SIGINT:
            self._presses += 1
        if self._presses > 1 and not _is_interactive():
            _say("ended without a checkpoint; those of before are whole")
            os._exit(EXIT_ENDED)
        if number == signal.SIGINT:
            _say(
                "stopping after this step, with a checkpoint; "
                "Ctrl-C again ends at once, without one"
            )
        elif number == signal.SIGTERM:
            _say("SIGTERM: stopping after this step, with a checkpoint")


def _is_interactive() -> bool:
    return hasattr(sys, "ps1")


def _say(line: str) -> None:
    """Straight to the terminal: the main thread may be in the middle of a print."""
    start = "\n" if os.isatty(2) else ""  # behind the ^C of the terminal
    os.write(2, f"{start}{line}\n".encode())
