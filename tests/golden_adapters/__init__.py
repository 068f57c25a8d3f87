"""How reference arrays are run against normjax: an adapter per variant or family.

An adapter is a function (data, meta) -> `Case`, which says what the arrays are here and
which function they belong to; `run.check` does the rest. Adapters of what is no forward
pass with gradients (whole models, clipping) assert by themselves. A file is known by
what its meta says, never by a name: layers by `variant`, whole models by `family`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from normjax.core.errors import one_of
from tests.golden_adapters.compare import LAYERS, MODELS, NORMS, WEIGHTS, Tolerance
from tests.golden_adapters.run import Case, check


class Runner(NamedTuple):
    """(data, meta, tolerance) -> None, and the tolerances to run a file with."""

    run: Callable
    tolerances: tuple[Tolerance, ...]


RUNNERS: dict[str, dict[str, Runner]] = {"variant": {}, "family": {}}


def registered(*names: str, by: str, tolerances: tuple[Tolerance, ...]):
    """Decorator that adds a function which asserts for these variants or families."""

    def add(function):
        RUNNERS[by].update(dict.fromkeys(names, Runner(function, tolerances)))
        return function

    return add


def described(*variants: str, tolerances: tuple[Tolerance, ...]):
    """Decorator that adds a function (data, meta) -> Case.

    Or -> a list of them, which compute the same: in float64, in which tests of their
    own compare them, only the first is run.
    """

    def add(adapter):
        @registered(*variants, by="variant", tolerances=tolerances)
        def check_all(data, meta, tolerance):
            made = adapter(data, meta)
            cases = [made] if isinstance(made, Case) else made
            for case in cases[:1] if tolerance.dtype == "float64" else cases:
                check(case, data, meta, tolerance)

        return adapter

    return add


norm_case = functools.partial(described, tolerances=NORMS)
layer_case = functools.partial(described, tolerances=LAYERS)
weight_case = functools.partial(described, tolerances=WEIGHTS)
norm_runner = functools.partial(registered, by="variant", tolerances=NORMS)
weight_runner = functools.partial(registered, by="variant", tolerances=WEIGHTS)
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
    decoders,
    defects,
    families,
    language_mixers,
    language_models,
    long_sequences,
    map_mixers,
    methods,
    norms,
    optim,
    optim_rules,
    optim_schedules,
    optim_sparsity,
    optim_width,
    osnet,
    placements,
    pruning,
    published_a,
    published_b,
    published_c,
    recursive,
    saliency,
    sequence_mixers,
    staged_mixers,
    stateful,
    training_rules,
    vision_mixers,
    visual_mixers,
    weights,
    whole_batches,
    whole_models,
)
