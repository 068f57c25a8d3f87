"""Times that can be compared on a machine that others use too."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def alternate(
    functions: Mapping[Any, Callable[[], Any]], rounds: int, repeats: int = 1
) -> dict:
    """Median seconds of each function, called in turns.

    In its turn a function is called twice and the second call timed: the first finds
    the memory and caches as another function left them.

    Args:
      functions: by name; what they return is waited for.
      rounds: how often each is timed.
      repeats: calls that are timed together, of which the last is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            jax.block_until_ready(function())
            begin = time.perf_counter()
            for _ in range(repeats - 1):
                function()
            jax.block_until_ready(function())
            times[name].append((time.perf_counter() - begin) / repeats)
    return {name: float(np.median(t)) for name, t in times.items()}
