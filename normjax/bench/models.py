"""Time of named models: inference, folded and not, and a training step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models
from normjax.core.collections import PARAMS
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.train import report

DEFAULT = ("deit_tiny", "slab_deit_tiny")
SIDE, BATCH, CLASSES = 224, 16, 1000
ROUNDS = 5


def models_command(argv: Sequence[str]) -> int:
    """`models [PRESET ...]`: float32, 224 pixels, batches of 1 and 16, in turns."""
    names = argv[1:] or DEFAULT
    for name in names:
        if name not in models.PRESETS:
            raise UserError(one_of("model", name, models.PRESETS))
    calls: dict[tuple[str, str], Callable] = {}
    sizes = {}
    for name in names:
        model = models.build(name, num_classes=CLASSES)
        variables, sizes[name] = _variables(model)
        images = jax.random.normal(jax.random.key(1), (BATCH, SIDE, SIDE, 3))
        for kind, pair in (
            ("", (model, variables)),
            (" folded", fusion.fold(model, variables)),
        ):
            for batch in (1, BATCH):
                forward = jax.jit(pair[0].apply)
                call = functools.partial(forward, pair[1], images[:batch])
                calls[name, f"forward {batch}{kind}"] = call
        calls[name, f"train {BATCH}"] = _train_call(model, variables, images)
    seconds = alternate(calls, ROUNDS)
    columns = list(dict.fromkeys(kind for _, kind in calls))
    rows = [
        (name, sizes[name], *(1e3 * seconds[name, kind] for kind in columns))
        for name in names
    ]
    first = rows[0]
    rows += [
        (
            f"{row[0]} / {first[0]}",
            "",
            *(a / b for a, b in zip(row[2:], first[2:], strict=True)),
        )
        for row in rows[1:]
    ]
    title = f"{SIDE} x {SIDE}, float32, ms (median of {ROUNDS})"
    report.table(title, ("model", "parameters", *columns), rows)
    return 0


def _variables(model) -> tuple[dict[str, Any], int]:
    images = jnp.zeros((1, SIDE, SIDE, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return dict(variables), sum(x.size for x in jax.tree.leaves(variables[PARAMS]))


def _train_call(model, variables, images) -> Callable:
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
