"""Cycles on a TPU by the schedule of its compiler, side by side; no TPU is needed."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import fusion, mixers, models, norms, optim
from normjax.core.arguments import field_names, required_names
from normjax.core.collections import PARAMS
from normjax.core.errors import UserError, one_of
from normjax.core.phases import counters_in, known_counters
from normjax.plan.schedule import TOPOLOGY, Program, Schedule, program_of
from normjax.plan.schedule_tables import watched
from normjax.plan.topology import prepare
from normjax.records import report

DTYPE = jnp.bfloat16
NORM_SHAPES = {"seq": (64, 196, 384), "grid": (64, 14, 14, 384)}
TOKENS, WIDTH, HEADS = ((14, 14), (32, 32), (64, 64)), 192, 3
BATCH, SIDE, CLASSES = 64, 224, 1000
LATE = 2**31 - 1  # updates
MODELS = ("deit_tiny", "deit_tiny:prepbn", "slab_deit_tiny")
OPTIMIZED = "deit_small"

Rows = Iterator[tuple[str, Callable, tuple[Any, ...]]]


def tpu_command(argv: Sequence[str]) -> int:
    """`tpu norms|mixers|models|optimizers [NAME ...]`: million cycles on a v5e.

    bfloat16. Of norms at [64, 196, 384] as multiples of reading and writing the array
    once; of mixers at 196, 1,024 and 4,096 tokens of 192 channels, 12,544 in all; of
    models (PRESET or PRESET:NORM) 64 images of 224 pixels: inference, inference folded
    and a training step, ratios to the first; of optimizers an update of DeiT-S, as
    multiples of reading and writing what it must.
    """
    kind, names = "".join(argv[1:2]), argv[2:]
    if kind not in _TABLES:
        raise UserError(one_of("tpu table", kind, _TABLES))
    prepare([TOPOLOGY])
    _TABLES[kind](names)
    return 0


def _norms(names: Sequence[str]) -> None:
    _known("norm", names, norms.NORMS)
    made: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in norms.NORMS:
        if names and entry.name not in names:
            continue
        layout = "seq" if "seq" in entry.tags else "grid"
        required = dict.fromkeys(required_names(entry.make), 1_000_000)
        made[entry.name] = norms.build(entry.name, **required)(dtype=DTYPE)
        shapes[entry.name] = NORM_SHAPES[layout]
    programs = {}
    for name, module in made.items():
        x = jax.ShapeDtypeStruct(shapes[name], DTYPE)
        programs |= _with_backward(name, module, x, train=True)
    found = _scheduled(programs)
    floor = 2 * _bytes(jax.ShapeDtypeStruct(NORM_SHAPES["seq"], DTYPE))
    rows = []
    for name in made:
        forward, both = found[name, "forward"], found[name, "both"]
        least = floor / forward.chip.bandwidth * forward.chip.clock
        ratios = (forward.cycles / least, both.cycles / least)
        rows.append((name, forward.cycles, both.cycles, *ratios))
    columns = ("norm", "forward", "with backward", "forward / floor", "both / floor")
    shape = list(NORM_SHAPES["seq"])
    report.table(f"cycles at {shape} in training; floor: read and write", columns, rows)


def _mixers(names: Sequence[str]) -> None:
    _known("mixer", names, mixers.MIXERS)
    programs = {}
    chosen = [e for e in mixers.MIXERS if not names or e.name in names]
    for entry in chosen:
        given = {"num_heads": HEADS, "layer": 0, "num_layers": 2}
        allowed = field_names(entry.make)
        arguments = {k: v for k, v in given.items() if k in allowed}
        if set(required_names(entry.make)) - set(arguments):
            continue
        module = mixers.build(entry.name, **arguments)(dtype=DTYPE)
        for height, width in TOKENS:
            tokens = height * width
            batch = max(BATCH * TOKENS[0][0] * TOKENS[0][1] // tokens, 1)
            grid = "grid" in entry.tags
            shape = (height, width) if grid else (tokens,)
            x = jax.ShapeDtypeStruct((batch, *shape, WIDTH), DTYPE)
            key = f"{entry.name} {tokens:,}"
            try:
                programs |= _with_backward(key, module, x)
            except UserError:
                continue  # this mixer does not take so many
    found = _scheduled(programs)
    rows = [
        (key, found[key, "forward"].cycles / 1e6, found[key, "both"].cycles / 1e6)
        for key in dict.fromkeys(key for key, _ in found)
    ]
    columns = ("mixer, tokens", "forward", "with backward")
    report.table(f"million cycles, {WIDTH} channels, {HEADS} heads", columns, rows)


def _models(names: Sequence[str]) -> None:
    chosen = list(names) or list(MODELS)
    _known("model", [name.partition(":")[0] for name in chosen], models.PRESETS)
    programs: dict[tuple[str, str], Program] = {}
    for name in chosen:
        for kind, function, arguments in model_calls(name):
            programs[name, kind] = program_of(function, *arguments)
    found = _scheduled(programs)
    kinds = ("inference", "folded", "training step")
    cycles = {
        name: [found[name, kind].cycles / 1e6 for kind in kinds] for name in chosen
    }
    rows: list[tuple[Any, ...]] = [
        (name, *cycles[name], *(100 * found[name, kind].mfu for kind in kinds))
        for name in chosen
    ]
    first, *others = chosen
    for name in others:
        ratios = (a / b for a, b in zip(cycles[name], cycles[first], strict=True))
        rows.append((f"{name} / {first}", *ratios, "", "", ""))
    columns = ("model", *kinds, *(f"MFU %, {kind}" for kind in kinds))
    report.table(f"million cycles, {BATCH} images of {SIDE} px", columns, rows)


def model_calls(name: str, batch: int = BATCH, side: int = SIDE) -> Rows:
    """(kind, function, arguments) of a preset, or of PRESET:NORM.

    The training step is that after PRepBN's decay, without an optimizer.
    """
    preset, _, norm = name.partition(":")
    given: dict[str, Any] = {"num_classes": CLASSES, "dtype": DTYPE}
    if norm:
        needed = dict.fromkeys(required_names(norms.NORMS[norm].make), 1_000_000)
        given["norm"] = {"name": norm, **needed}
    model = models.build(preset, **given)
    images = jax.ShapeDtypeStruct((batch, side, side, 3), DTYPE)
    small = jnp.zeros((1, side, side, 3))
    variables = dict(jax.jit(model.init)(jax.random.key(0), small))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded, merged = fusion.fold(model, variables)
    yield "inference", model.apply, (_narrow(variables), images)
    yield "folded", folded.apply, (_narrow(merged), images)
    rest = {k: v for k, v in variables.items() if k != PARAMS}
    ended = {path: np.full(x.shape, LATE) for path, x in counters_in(rest).items()}

    def step(params, rest, images):
        def loss(params):
            logits, new = model.apply(
                {**rest, PARAMS: params}, images, train=True, mutable=list(rest)
            )
            return jnp.mean(jnp.square(logits)), new

        with known_counters(ended):
            return jax.grad(loss, has_aux=True)(params)

    abstract = jax.eval_shape(lambda v: v, (variables[PARAMS], rest))
    yield "training step", step, (*abstract, images)


def _optimizers(names: Sequence[str]) -> None:
    known = optim.OPTIMIZERS
    _known("optimizer", names, known)
    chosen = list(names) or [entry.name for entry in known]
    model = models.build(OPTIMIZED, num_classes=CLASSES)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)[PARAMS]
    programs, floors = {}, {}
    for name in chosen:
        optimizer = known[name].make(1e-3, None)
        state = jax.eval_shape(optimizer.init, params)

        def update(grads, state, params, optimizer=optimizer):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        programs[name, "update"] = program_of(update, params, state, params)
        floors[name] = 2 * _bytes((state, params)) + _bytes(params)
    rows = []
    for (name, _), each in _scheduled(programs).items():
        least = floors[name] / each.chip.bandwidth * each.chip.clock
        rows.append((name, each.cycles / 1e6, each.cycles / least))
    columns = ("optimizer", "million cycles", "/ floor")
    title = f"an update of {OPTIMIZED}; floor: state and parameters once, both ways"
    report.table(title, columns, rows)


_TABLES = {
    "norms": _norms,
    "mixers": _mixers,
    "models": _models,
    "optimizers": _optimizers,
}


def _known(what: str, names: Sequence[str], registry: Any) -> None:
    known = [getattr(entry, "name", entry) for entry in registry]
    for name in names:
        if name not in known:
            raise UserError(one_of(what, name, known))


def _with_backward(
    name: str, module: Any, x: jax.ShapeDtypeStruct, **arguments: Any
) -> dict[tuple[str, str], Program]:
    """The forward pass of a layer and that with all its gradients, at first."""
    takes = type(module).__call__.__annotations__
    arguments = {k: v for k, v in arguments.items() if k in takes}
    init = functools.partial(module.init, **arguments)
    variables = dict(jax.eval_shape(init, jax.random.key(0), x))
    rest = {k: v for k, v in variables.items() if k != PARAMS}
    params = variables.get(PARAMS, {})

    begun = {path: np.zeros(x.shape) for path, x in counters_in(rest).items()}

    def forward(params, rest, x):
        variables = {PARAMS: params, **rest}
        with known_counters(begun):
            return module.apply(variables, x, mutable=list(rest), **arguments)

    def both(params, rest, x, dy):
        y, backward, new = jax.vjp(
            lambda params, x: forward(params, rest, x), params, x, has_aux=True
        )
        return y, backward(dy), new

    return {
        (name, "forward"): program_of(forward, params, rest, x),
        (name, "both"): program_of(both, params, rest, x, x),
    }


def _scheduled(
    programs: Mapping[tuple[str, str], Program],
) -> dict[tuple[str, str], Schedule]:
    by_name = {" ".join(key): program for key, program in programs.items()}
    found = watched(by_name, TOPOLOGY)
    return {key: found[" ".join(key)] for key in programs}


def _narrow(variables: Any) -> Any:
    def narrow(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, DTYPE if floating else x.dtype)

    return jax.tree.map(narrow, variables)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
