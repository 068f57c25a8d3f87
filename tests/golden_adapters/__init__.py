"""How reference arrays are run against normjax: one function per variant.

`RUNNERS[variant](data, meta, tolerance)` asserts that values, gradients, state agree.
Arrays and constructor arguments are the reference's; the adapter translates names and
layouts.
"""

from collections.abc import Callable

RUNNERS: dict[str, Callable] = {}


def runner(*variants: str):
    """Register a function for the variants that a file's meta may name."""

    def add(function):
        for variant in variants:
            RUNNERS[variant] = function
        return function

    return add


from tests.golden_adapters import (  # noqa: E402, F401
    activations,
    families,
    mixers,
    norms,
    placements,
    sequence_mixers,
    stateful,
    vision_mixers,
    whole_models,
)
