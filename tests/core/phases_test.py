"""Phases of counters, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.phases import (
    counters_in,
    covers,
    known_counters,
    phase_of,
    updates_left,
)

ENDS = (3, 7)
NORM = ("blocks_0", "norm1")


@pytest.mark.parametrize(
    "count,phase", [(0, 0), (2, 0), (3, 1), (6, 1), (7, 2), (99, 2)]
)
def test_a_phase_begins_where_the_one_before_ends(count, phase):
    traced = jax.jit(lambda c: phase_of(NORM, c, ENDS))(jnp.int32(count))
    with known_counters({NORM: np.int32(count)}):
        known = phase_of(NORM, jnp.int32(0), ENDS)
        other = phase_of(("norm",), jnp.int32(count), ENDS)
    assert isinstance(known, int) and known == phase
    assert isinstance(other, jax.Array)
    assert traced == other == phase


def test_an_empty_phase_is_left_out():
    with known_counters({NORM: np.int32(0)}) as spans:
        assert phase_of(NORM, jnp.int32(0), (0, 5)) == 1
    assert spans == {NORM: (0, 5)}


@pytest.mark.parametrize(
    "counts,span,left",
    [(2, (0, 3), 1), (3, (3, 7), 4), (9, (7, np.inf), np.inf), ([4, 5], (3, 7), 2)],
)
def test_programs_are_right_until_the_next_phase(counts, span, left):
    counters = {NORM: np.asarray(counts), ("norm",): np.asarray(0)}
    with known_counters(counters) as spans:
        phase_of(NORM, jnp.int32(0), ENDS)
    assert spans == {NORM: span}
    assert updates_left(spans, counters) == left
    for count in range(10):
        moved = counters | {NORM: np.asarray(count)}
        assert covers(spans, moved) == (span[0] <= count < span[1])


def test_layers_in_different_phases_switch_until_the_last_one_moves_on():
    counters = {NORM: np.array([1, 4])}
    with known_counters(counters) as spans:
        assert phase_of(NORM, jnp.int32(4), ENDS) == 1
        assert isinstance(phase_of(NORM, jnp.int32(4), ENDS), jax.Array)
    assert spans == {NORM: (0, 7)} and updates_left(spans, counters) == 3


def test_what_asks_nothing_is_always_right():
    with known_counters({NORM: np.int32(2)}) as spans:
        pass
    assert covers(spans, {}) and updates_left(spans, {}) == np.inf


def test_counters_are_those_of_batch_stats():
    stats = {"norm": {"step": 4, "batch_norm": {"mean": 1.0}}, "step": 2}
    found = counters_in({"params": {"norm": {"step": 7}}, "batch_stats": stats})
    assert found == {("norm",): 4, (): 2}
    assert counters_in({"params": {}}) == {}
