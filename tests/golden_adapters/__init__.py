"""How reference arrays are run against normjax: one function per variant or family.

`runner_of(meta)` gives the function and its tolerances; called with (data, meta,
tolerance) it asserts that values, gradients and state agree. Arrays and constructor
arguments are the reference's; the adapter translates names and layouts. A file is known
by what its meta says, never by a name: layers by `variant`, whole models by `family`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from normjax.core.errors import one_of
from tests.golden_adapters.compare import LAYERS, MODELS, NORMS, Tolerance


class Runner(NamedTuple):
    """How a file is run, and to what tolerances by default."""

    run: Callable
    tolerances: tuple[Tolerance, ...]


RUNNERS: dict[str, dict[str, Runner]] = {"variant": {}, "family": {}}


def registered(*names: str, by: str, tolerances: tuple[Tolerance, ...]):
    """Decorator that adds a function for the variants or families of these names."""

    def add(function):
        RUNNERS[by].update(dict.fromkeys(names, Runner(function, tolerances)))
        return function

    return add


norm_runner = functools.partial(registered, by="variant", tolerances=NORMS)
layer_runner = functools.partial(registered, by="variant", tolerances=LAYERS)
model_runner = functools.partial(registered, by="family", tolerances=MODELS)


def runner_of(meta) -> Runner:
    """How to run a file with this meta.

    Raises:
      LookupError: nothing runs it; one line says what it is.
    """
    by = "family" if meta.get("family") else "variant"
    name = str(meta.get(by))
    if name not in RUNNERS[by]:
        raise LookupError(f"no adapter: {one_of(by, name, RUNNERS[by])}")
    return RUNNERS[by][name]


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
