"""The trace that `profile_steps` asks for."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from normjax.train.profile import SETTLED, Profile


def runs_in(folder, name):
    """How often the jitted function `name` was called while the trace ran."""
    (file,) = folder.rglob("*.xplane.pb")
    data = ProfileData.from_file(str(file))
    events = sorted(
        (event.start_ns, event.duration_ns)
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == f"PjitFunction({name})"
    )
    calls, until = 0, 0.0
    for begin, duration in events:
        calls += begin >= until  # an event in another one is the same call
        until = max(until, begin + duration)
    return calls


@pytest.mark.parametrize("start", [0, 7])
def test_so_many_steps_after_the_first_ones(tmp_path, start):
    @jax.jit
    def traced_step(x):
        return x + 1

    profile, state = Profile(tmp_path, 3, start, 30), jnp.zeros(())
    for step in range(start, 30):
        profile.at(step, state)
        # Nothing is written before the first steps are over.
        assert any(tmp_path.iterdir()) == (step >= start + SETTLED + 3)
        state = traced_step(state)
    assert runs_in(tmp_path, "traced_step") == 3


@pytest.mark.parametrize(("count", "end", "traced"), [(2, 5, 2), (8, 5, 5)])
def test_short_runs_are_traced_as_far_as_they_go(tmp_path, count, end, traced):
    @jax.jit
    def short_step(x):
        return x - 1

    profile, state = Profile(tmp_path, count, 0, end), jnp.zeros(())
    for step in range(end):
        profile.at(step, state)
        state = short_step(state)
    profile.at(end, state)
    assert runs_in(tmp_path, "short_step") == traced


def test_none(tmp_path):
    profile = Profile(tmp_path, 0, 0, 20)
    for step in range(21):
        profile.at(step, ())
    profile.close()
    assert not any(tmp_path.iterdir())


def test_a_run_that_stops_early_leaves_what_there_is(tmp_path):
    profile = Profile(tmp_path, 5, 0, 20)
    for step in range(SETTLED + 2):
        profile.at(step, ())
    profile.close()
    profile.close()
    assert list(tmp_path.rglob("*.xplane.pb"))
