"""Step time and memory of the four modes of ConvBN blocks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models
from normjax.core.collections import PARAMS
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

DEFAULT = ("resnet18", "resnet50")
SIDE, BATCH, CLASSES = 160, 16, 100
ROUNDS = 5


def conv_bn_command(argv: Sequence[str]) -> int:
    """`conv_bn [PRESET ...]`: loss and gradient of every parameter, float32, in turns.

    train: statistics of the batch. eval: frozen ones. tune: merged into the weights in
    every step (`fusion.TunedModel`). deploy: merged once, and trained merged.
    """
    names = argv[1:] or DEFAULT
    for name in names:
        if name not in models.PRESETS:
            raise UserError(one_of("model", name, models.PRESETS))
    for name in names:
        title = f"{name}, {BATCH} x {SIDE} x {SIDE}, float32, median of {ROUNDS}"
        columns = ("mode", "ms a step", "/ eval", "MiB at most", "/ eval")
        report.table(title, columns, measure(name, SIDE, BATCH))
    return 0


def measure(name: str, side: int, batch: int) -> list[tuple]:
    """Rows (mode, ms a step, ratio to eval, MiB of temporaries, ratio to eval)."""
    calls, memory = {}, {}
    for mode, (step, arguments) in modes_of(name, side, batch).items():
        compiled = jit(step).lower(*arguments).compile()
        calls[mode] = functools.partial(compiled, *arguments)
        analysis = compiled.memory_analysis()
        memory[mode] = int(getattr(analysis, "temp_size_in_bytes", 0) or 0)
    seconds = alternate(calls, ROUNDS)

    def ratio(values, mode):
        return values[mode] / max(values["eval"], 1e-12)

    return [
        (
            mode,
            1e3 * seconds[mode],
            ratio(seconds, mode),
            memory[mode] / 2**20,
            ratio(memory, mode),
        )
        for mode in calls
    ]


def modes_of(name: str, side: int, batch: int) -> dict[str, tuple[Callable, tuple]]:
    """(step, its arguments) by mode; a step gives the loss and its gradient."""
    host = models.build(name, num_classes=CLASSES)
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    labels = jnp.arange(batch) % CLASSES
    variables = dict(jax.jit(host.init)(jax.random.key(1), images[:1]))
    folded, merged = fusion.fold(host, variables)
    modes: dict[str, tuple[Any, Any, bool]] = {
        "train": (host, variables, True),
        "eval": (host, variables, False),
        "tune": (fusion.TunedModel(host), variables, True),
        "deploy": (folded, merged, False),
    }
    return {
        mode: (_step_of(model, train), (given[PARAMS], _state(given), images, labels))
        for mode, (model, given, train) in modes.items()
    }


def _state(variables: Any) -> dict[str, Any]:
    return {k: v for k, v in variables.items() if k != PARAMS}


def _step_of(model: Any, train: bool) -> Callable:
    def step(params, state, images, labels):
        def loss(params):
            logits, new = model.apply(
                {**state, PARAMS: params}, images, train=train, mutable=list(state)
            )
            chosen = jax.nn.one_hot(labels, logits.shape[-1])
            cross_entropy = -jnp.sum(chosen * jax.nn.log_softmax(logits), -1)
            return jnp.mean(cross_entropy), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step
