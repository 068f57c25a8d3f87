"""The clock of training, by a clock that the test moves."""

import numpy as np
import pytest

from normjax.train import pace


@pytest.fixture
def clock(monkeypatch):
    """Seconds to add to."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_windows_leave_out_what_stands_between(clock):
    """Steps of 2 s at first and of 1 s later; data that come 0.5 s late."""

    def batches():
        for i in range(6):
            clock[0] += 0.5 if i else 0.0
            yield i

    measured = pace.Pace(units=8)
    measured.start(step=10)
    found, step = [], 10
    for i in measured.watch(batches()):
        clock[0] += 2.0 if i < 3 else 1.0
        step += 1
        if step in (13, 16):
            found.append(measured.window(step))
        if step == 13:
            measured.stop()
            clock[0] += 1000.0
            measured.go_on()
    measured.stop()
    clock[0] += 1000.0
    np.testing.assert_allclose(found, [(24 / 7, 1 / 7), (24 / 4.5, 1.5 / 4.5)])
    assert (measured.steps, measured.seconds) == (6, 11.5)
    np.testing.assert_allclose(measured.speed(), 48 / 11.5)


def test_a_run_that_goes_back_begins_a_window(clock):
    measured = pace.Pace(units=1)
    measured.start(step=5)
    clock[0] += 3.0
    measured.start(step=2)
    clock[0] += 4.0
    assert measured.window(4) == (0.5, 0.0)
