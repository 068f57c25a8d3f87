"""The processes of a run: they agree before they compute, and end with one exit code.

What they say to each other at the start goes through the key-value store of JAX's
coordination service, not through collectives: those give up on a process that is late
(Gloo after 30 seconds), and one that has failed they wait for in vain.
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")

PERIOD = 1.0
"""Seconds between two looks of a process for the failure of another."""

GRACE = 5.0
"""Seconds that a process has to end by itself once another has failed."""

FAREWELL = 20.0
"""Seconds that the first process, whose end ends the store, waits for the others."""

_DAY = 24 * 3600 * 1000
"""Milliseconds; that a process is dead is noticed long before, by its heartbeats."""

_PREFIX = "normjax"


class Ending(NamedTuple):
    """How a run ends.

    Attributes:
      code: exit code.  process: which one has failed.  line: what it says.
    """

    code: int
    process: int
    line: str


class Group:
    """One process's part in the group.

    Calls of `gather` and `from_first` must come in the same order in all processes.

    Args:
      client: with the methods of JAX's DistributedRuntimeClient that are called here.
      index, count: of the processes.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self.index, self.count = client, index, count
        self._turn = 0
        self._own_end, self._done = threading.Event(), threading.Event()

    def from_first(self, value: T) -> T:
        """The first process's `value`, anything that JSON holds; waits for it."""
        key = self._next()
        if self.index == 0:
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._client.blocking_key_value_get(key, _DAY))

    def gather(self, value: T) -> list[T]:
        """Everybody's `value`, anything that JSON holds; waits for all of them."""
        key = self._next()
        self._client.key_value_set(f"{key}/{self.index}", json.dumps(value))
        self._client.wait_at_barrier(key, _DAY)
        said = self._client.key_value_dir_get(f"{key}/")
        by_index = {int(k.rpartition("/")[2]): json.loads(v) for k, v in said}
        return [by_index[index] for index in range(self.count)]

    def _next(self) -> str:
        self._turn += 1
        return f"{_PREFIX}/turn/{self._turn}"

    def watch(self) -> None:
        """End this process soon after another one has failed, whatever it does then."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD):
            ending = self._ending()
            if ending and not self._own_end.wait(GRACE):
                self._say(ending, "")
                self._leave(ending.code)
            if ending:
                return

    def succeed(self) -> None:
        """Wait until all processes are done, and end as usual.

        Where another one fails meanwhile `watch` ends this one.
        """
        with contextlib.suppress(Exception):  # the store is gone, and soon we are
            self._client.wait_at_barrier(f"{_PREFIX}/done", _DAY)
        self._done.set()

    def failed(self) -> bool:
        """Whether another process has failed; looks twice.

        So what is raised here is its consequence, such as a connection that is lost.
        """
        return bool(self._ending() or time.sleep(2 * PERIOD) or self._ending())

    def fail(self, code: int, line: str) -> NoReturn:
        """End this process and, with the same code, all others.

        Args:
          code: exit code, unless another process has failed before: then its code.
          line: what the others say; they, and this one, name who has failed.
        """
        self._own_end.set()
        own = Ending(code, self.index, line)
        with contextlib.suppress(Exception):  # another was first, or the store is gone
            self._client.key_value_set(_ENDING, json.dumps(own))
        ending = self._ending() or own
        self._say(ending, line)
        self._leave(ending.code)

    def _ending(self) -> Ending | None:
        try:
            return Ending(*json.loads(self._client.key_value_try_get(_ENDING)))
        except Exception:  # there is none, or the store is gone
            return None

    def _say(self, ending: Ending, line: str) -> None:
        if ending.process != self.index and ending.line != line:
            where = f"error: process {ending.process} of {self.count}: {ending.line}"
            print(where, file=sys.stderr, flush=True)

    def _leave(self, code: int) -> NoReturn:
        """End at once: at its usual end JAX waits for those that have failed."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_LEAVING}{self.index}", "", True)
            if self.index == 0:
                self._see_off()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _see_off(self) -> None:
        """Wait for the others: where the store is gone, JAX ends them with its code."""
        end = time.monotonic() + FAREWELL
        while time.monotonic() < end:
            time.sleep(PERIOD)
            if len(self._client.key_value_dir_get(_LEAVING)) == self.count:
                return


_ENDING, _LEAVING = f"{_PREFIX}/ending", f"{_PREFIX}/leaving/"
