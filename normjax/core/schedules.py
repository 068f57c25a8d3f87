"""Norms that change in the course of a run, and how by default. No jax here."""

_SCHEDULES = {
    "power_norm": {"warmup_fraction": 0.1},
    "unified_norm": {"warmup_fraction": 0.1},
    # A user of the published 60,000 steps got NaN; 4/5 of the run cured it.
    "prepbn": {"warmup_fraction": 0.0, "decay_fraction": 0.8},
}


def norm_schedule(name: str) -> dict[str, float]:
    """The norm's schedule in fractions of the run; empty where it has none."""
    return dict(_SCHEDULES.get(name, {}))
