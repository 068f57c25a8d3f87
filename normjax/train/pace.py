"""How fast a run trains, and how long it waits for its data."""

import time
from collections.abc import Iterable, Iterator
from typing import Any


class Pace:
    """A clock that runs while a run trains; not while it evaluates or saves.

    Args:
      units: what a step is made of, counted.

    Attributes:
      units: as given; others from the next start of the clock on, if they are set.
      steps: that were begun.
      seconds: until the clock was stopped last.

    Example:
      >>> from normjax.train.pace import Pace
      >>> pace = Pace(units=16)
      >>> pace.start(step=0)
      >>> batches = list(pace.watch([1, 2, 3]))
      >>> pace.stop()
      >>> pace.steps, batches
      (3, [1, 2, 3])
    """

    def __init__(self, units: int):
        self.units = units
        self.steps, self.seconds, self._done = 0, 0.0, 0
        self._begin: float | None = None
        self._waited = 0.0
        self._since = (0, 0.0, 0.0)

    def start(self, step: int) -> None:
        """The clock runs, at so many steps of the run; a window begins."""
        self.go_on()
        self.go_on()
        self._since = (step, self._spent(), self._waited)

    def go_on(self) -> None:
        """The clock runs again, in the same window."""
        self._begin = time.monotonic()

    def stop(self) -> None:
        """The clock stands."""
        self.seconds, self._begin = self._spent(), None

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, with the time that each lets the run wait; each is a step."""
        iterator = iter(batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - begin
            self.steps += 1
            self._done += self.units
            yield batch

    def speed(self) -> float:
        """Units a second of all steps."""
        return self._done / max(self._spent(), 1e-9)

    def window(self, step: int) -> tuple[float, float]:
        """Units a second and share of the time that was waited for data, since the
        window began; the next one begins.

        Args:
          step: so many are done by now.
        """
        begun, spent, waited = self._since
        self._since = (step, self._spent(), self._waited)
        seconds = max(self._since[1] - spent, 1e-9)
        speed = (step - begun) * self.units / seconds
        return speed, min((self._waited - waited) / seconds, 1.0)

    def _spent(self) -> float:
        running = 0.0 if self._begin is None else time.monotonic() - self._begin
        return self.seconds + running
