"""Size and time of named models: inference, folded and not, and a training step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models
from normjax.bench.operations import multiply_adds
from normjax.core.collections import PARAMS
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.train import report

DEFAULT = ("deit_tiny", "slab_deit_tiny")
SIDE, BATCH, CLASSES = 224, 16, 1000
ROUNDS = 5


def models_command(argv: Sequence[str]) -> int:
    """`models [PRESET ...]`: float32, 224 pixels, in turns; ratios to the first."""
    names = argv[1:] or DEFAULT
    for name in names:
        if name not in models.PRESETS:
            raise UserError(one_of("model", name, models.PRESETS))
    sizes, calls = {}, {}
    for name in names:
        sizes[name], own = measured(name)
        calls.update({(name, kind): call for kind, call in own.items()})
    seconds = alternate(calls, ROUNDS)
    kinds = list(dict.fromkeys(kind for _, kind in calls))
    times = {name: [1e3 * seconds[name, kind] for kind in kinds] for name in names}
    rows = [(name, *sizes[name], *times[name]) for name in names]
    for name in names[1:]:
        pairs = zip(times[name], times[names[0]], strict=True)
        rows.append((f"{name} / {names[0]}", "", "", "", *(a / b for a, b in pairs)))
    head = ("model", "parameters", "GMAC by formula", "GMAC compiled")
    title = f"{SIDE} x {SIDE}, float32, ms (median of {ROUNDS})"
    report.table(title, (*head, *kinds), rows)
    return 0


def measured(name: str) -> tuple[tuple[int, float, float], dict[str, Callable]]:
    """(parameters, 1e9 multiply-adds by formula and as compiled), what to time."""
    model = models.build(name, num_classes=CLASSES)
    images = jax.random.normal(jax.random.key(1), (BATCH, SIDE, SIDE, 3))
    variables = dict(jax.jit(model.init)(jax.random.key(0), images[:1]))
    calls: dict[str, Callable] = {}
    folded_model, folded = fusion.fold(model, variables)
    for kind, apply, given in (
        ("forward", model.apply, variables),
        ("folded", folded_model.apply, folded),
    ):
        for batch in (1, BATCH):
            call = functools.partial(jax.jit(apply), given, images[:batch])
            calls[f"{kind} {batch}"] = call
    calls[f"train {BATCH}"] = _train_call(model, variables, images)
    compiled = jax.jit(model.apply).lower(variables, images[:1]).compile()
    costs: Any = compiled.cost_analysis() or {}
    parameters = sum(x.size for x in jax.tree.leaves(variables[PARAMS]))
    formula = multiply_adds(model.apply, variables, images[:1])
    return (parameters, formula / 1e9, costs.get("flops", 0) / 2e9), calls


def _train_call(model: Any, variables: dict[str, Any], images: jax.Array) -> Callable:
    """Forward in training and the gradient of every parameter."""
    state = {k: v for k, v in variables.items() if k != PARAMS}

    @jax.jit
    def step(params, images):
        def loss(params):
            logits, new = model.apply(
                {**state, PARAMS: params}, images, train=True, mutable=list(state)
            )
            return jnp.mean(jnp.square(logits)), new

        return jax.grad(loss, has_aux=True)(params)

    return functools.partial(step, variables[PARAMS], images)
