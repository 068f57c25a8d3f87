"""Phases of schedules inside modules, and programs that know which one it is.

A module that computes one thing for some updates and another for the next ones, such as
PRepBN, asks `phase_of`. By itself it learns that from its counter, an array, and
switches. A loop knows the counters while it traces: under `known_counters` the phase is
a number of Python, the program holds nothing but that phase, and the loop learns until
when it may be used.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from normjax.core.collections import BATCH_STATS, COUNTER

Path = tuple[str, ...]
"""Of a module."""

Spans = dict[Path, tuple[int, float]]
"""By module, the first count that a program is right for, and the first that it is not.
"""


class _Known:
    """Compared by identity: nothing that JAX has traced for others is taken again."""

    def __init__(self, counters: Mapping[Path, np.ndarray]):
        self.counters = counters
        self.spans: Spans = {}


_known: Any = jax.make_user_context()


def counters_in(variables: Mapping[str, Any]) -> dict[Path, Any]:
    """The counters of modules in their `batch_stats`, by the modules' paths.

    Args:
      variables: collections of a model.
    """
    flat = flatten_dict(dict(variables.get(BATCH_STATS, {})))
    return {path[:-1]: x for path, x in flat.items() if path[-1] == COUNTER}


@contextlib.contextmanager
def known_counters(counters: Mapping[Path, np.ndarray]) -> Iterator[Spans]:
    """What is traced meanwhile, in this thread, is for counters with these values.

    Yields:
      the spans of the modules that asked, complete at the end.
    """
    known = _Known(counters)
    with _known(known):
        yield known.spans


def covers(spans: Spans, counters: Mapping[Path, np.ndarray]) -> bool:
    """Whether a program with these spans may be used at these counters."""
    return all(
        np.all(counters[path] >= first) and np.all(counters[path] < end)
        for path, (first, end) in spans.items()
    )


def updates_left(spans: Spans, counters: Mapping[Path, np.ndarray]) -> float:
    """For how many updates that is so, of which each counts one at most."""
    ends = (end - np.max(counters[path]) for path, (_, end) in spans.items())
    return min(ends, default=np.inf)


def phase_of(path: Path, count: jax.Array, ends: Sequence[int]) -> jax.Array | int:
    """How many of `ends` a counter has reached: the number of the phase it is in.

    Args:
      path: of the module.  count: its counter.
      ends: of all phases but the last, in order.

    Returns:
      int32 scalar; a Python number where the counters are known and agree.
    """
    known = _known.value
    if known and path in known.counters:
        phases = np.searchsorted(ends, known.counters[path], side="right")
        first, last = int(np.min(phases)), int(np.max(phases))
        known.spans[path] = _span(first, last, ends)
        if first == last:
            return first
    return jnp.sum(count >= jnp.asarray(ends), dtype=jnp.int32)


def _span(first: int, last: int, ends: Sequence[int]) -> tuple[int, float]:
    """Counts in phases first to last; in several of them, the program switches."""
    begin = ends[first - 1] if first else 0
    return begin, ends[last] if last < len(ends) else np.inf
