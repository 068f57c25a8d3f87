"""How reference arrays are run against normjax: one function per variant.

`runner_of(variant)(data, meta, tolerance)` asserts that values, gradients, state agree.
Arrays and constructor arguments are the reference's; the adapter translates names and
layouts.
"""

import fnmatch
from collections.abc import Callable

RUNNERS: dict[str, Callable] = {}


def runner(*variants: str):
    """Register a function for the variants that a file's meta may name.

    A variant may be a pattern ("llama*").
    """

    def add(function):
        for variant in variants:
            RUNNERS[variant] = function
        return function

    return add


def runner_of(variant: str) -> Callable | None:
    """What is registered under that name, or for a pattern that it fits."""
    fits = (f for pattern, f in RUNNERS.items() if fnmatch.fnmatch(variant, pattern))
    return RUNNERS.get(variant) or next(fits, None)


from tests.golden_adapters import (  # noqa: E402, F401
    activations,
    adaptation,
    families,
    language_models,
    mixers,
    norms,
    placements,
    sequence_mixers,
    stateful,
    vision_mixers,
    weights,
    whole_models,
)
