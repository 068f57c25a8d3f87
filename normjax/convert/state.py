"""Published state dicts to variables and back, every array accounted for."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.convert.checks import (
    check_finite,
    check_shapes,
    check_types,
    single_values,
)
from normjax.convert.extras import Extra, extras_of, mask_side
from normjax.convert.layouts import FAMILY, SIZES, STEMS, TIED
from normjax.convert.names import (
    Entry,
    abstract_variables,
    check_form,
    check_layout,
    entries_of,
    layouts_of,
    own_layout,
)
from normjax.convert.results import Converted, Loose
from normjax.core.errors import UserError
from normjax.families.layout import LAYER_NORM, REPBN

State = Mapping[str, np.ndarray]

_SHOWN = 4  # names in an error


def from_torch(
    model: nn.Module, state: State, image_shape: tuple[int, ...] = (224, 224, 3)
) -> Converted:
    """The variables of `model` that a published state dict holds.

    Exact: arrays are transposed and reshaped, and cast to the dtype of ours.

    Args:
      model: of `models.build`; see `arguments_of` for what the file decides of it.
      state: arrays by name, without wrapper (see `files.read`).
      image_shape: [H, W, C] that the model is made for, if it reads images.

    Raises:
      UserError: arrays that are missing, unknown, of another shape or not what they
        are known to be; the line names the first of them.

    Example:
      >>> import jax
      >>> from normjax import convert, models
      >>> lm = models.build("lm_tiny", vocab_size=7, dim=8, depth=1, num_heads=2)
      >>> variables = lm.init(jax.random.key(0), jax.numpy.array([[6, 3, 1, 4]]))
      >>> converted = convert.from_torch(lm, convert.to_torch(lm, variables))
      >>> jax.tree.all(jax.tree.map(jax.numpy.array_equal, converted[0], variables))
      True
    """
    found = _matched(model, state, image_shape, {})
    shapes = found.shapes
    _refuse("lacks", (name for name in shapes if name not in found.state))
    check_shapes(found.state, shapes, image_shape[0] if image_shape else 0)
    known = shapes.keys() | found.extras.keys()
    _refuse("holds unknown", (name for name in found.state if name not in known))
    dropped = found.dropped | _dropped(found.extras, found.state)
    flat = {e.path: _ours(e, found.state).reshape(e.shape) for e in found.entries}
    used = len(shapes) - len(found.filled)
    return Converted(unflatten_dict(flat), found.layout, used, dropped, found.filled)


def loosely_from_torch(
    model: nn.Module, state: State, image_shape: tuple[int, ...] = (224, 224, 3)
) -> Loose:
    """What a published state dict holds of `model`, in the shapes that it has there.

    Args:
      model: of `models.build`.  state: arrays by name, without wrapper.
      image_shape: [H, W, C] that the model is made for, if it reads images.

    Raises:
      UserError: arrays that are damaged, quantized or not what they are known to be.

    Example:
      >>> import jax
      >>> from normjax import convert, models
      >>> size = {"dim": 8, "depth": 1, "num_heads": 2}
      >>> small, large = (models.build("lm_tiny", vocab_size=n, **size) for n in (7, 9))
      >>> variables = small.init(jax.random.key(0), jax.numpy.array([[6, 3, 1, 4]]))
      >>> found = convert.loosely_from_torch(large, convert.to_torch(small, variables))
      >>> found.arrays["params/head/kernel"].shape  # not of 9 tokens
      (8, 7)
    """
    theirs = {name: np.shape(array) for name, array in state.items()}
    found = _matched(model, state, image_shape, theirs)
    arrays, taken = {}, set()
    for entry in found.entries:
        if not all(name in found.state for name in entry.names):
            continue
        array = _ours(entry, found.state)
        if array.ndim != len(entry.shape) and array.size == math.prod(entry.shape):
            array = array.reshape(entry.shape)
        arrays["/".join(entry.path)] = array
        taken.update(entry.names)
    known = taken | found.extras.keys()
    optional = FAMILY[found.layout].optional
    foreign = {
        name: next((w for p, w in optional.items() if re.fullmatch(p, name)), "")
        for name in found.state
        if name not in known
    }
    dropped = found.dropped | _dropped(found.extras, found.state)
    return Loose(arrays, found.layout, dropped, foreign)


class _Matched(NamedTuple):
    """A state dict beside the arrays of a model; `shapes` are those that it wants."""

    layout: str
    entries: list[Entry]
    shapes: dict[str, tuple[int, ...]]
    extras: dict[str, Extra]
    state: dict[str, np.ndarray]
    dropped: dict[str, str]
    filled: dict[str, str]


def _matched(
    model: nn.Module,
    state: State,
    image_shape: tuple[int, ...],
    theirs: Mapping[str, tuple[int, ...]],
) -> _Matched:
    """The layout of `state` and what is known of its names.

    Args:
      theirs: shapes that arrays may have instead of the model's.
    """
    layout, entries = _nearest(model, abstract_variables(model, image_shape), state)
    shapes = {n: s for e in entries for n, s in zip(e.names, e.shapes, strict=True)}
    there = {name: theirs.get(name, shape) for name, shape in shapes.items()}
    # What depends on the size of the images is compared at the size of the file's.
    side = mask_side(state, there)
    extras = extras_of(model, there, layout, (side, side) if side else image_shape)
    state = single_values(state, there | {n: e.value.shape for n, e in extras.items()})
    known = {name: False for name in extras}
    weights = {n: e.dtype.kind == "f" for e in entries for n in e.names}
    check_types(state, known | weights)
    whole, filled = _completed(state, entries)
    whole, dropped = _without_repeats(whole, shapes)
    return _Matched(layout, entries, shapes, extras, whole, dropped, filled)


def _dropped(extras: Mapping[str, Extra], state: State) -> dict[str, str]:
    """Arrays that we compute, which are what they are known to be."""
    dropped = {}
    for name, extra in extras.items():
        if name in state and (difference := extra.difference(state[name])):
            raise UserError(f"{name} {difference}")
        if name in state:
            dropped[name] = extra.reason
    return dropped


def _nearest(model: nn.Module, variables: Any, state: State) -> tuple[str, list[Entry]]:
    """Of the layouts of the model that with the most names of the file."""
    found = {n: entries_of(model, variables, n) for n in layouts_of(model, variables)}

    def known(layout):
        return sum(name in state for entry in found[layout] for name in entry.names)

    layout = max(found, key=known)
    check_form(model, layout, found[layout])
    return layout, found[layout]


def to_torch(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, ...] = (224, 224),
    layout: str | None = None,
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: a state dict that the published code loads strictly.

    Args:
      model: of `models.build`.  variables: of it.
      image_shape: [H, W, ...] that the model is made for, if it reads images.
      layout: a key of `layouts.LAYOUTS`; None for that of the family's own release.

    Raises:
      UserError: a model, or a variable of it, without a place in the layout.

    Example:
      >>> import jax
      >>> from normjax import convert, models
      >>> lm = models.build("lm_tiny", vocab_size=7, dim=8, depth=1, num_heads=2)
      >>> variables = lm.init(jax.random.key(0), jax.numpy.array([[6, 3, 1, 4]]))
      >>> state = convert.to_torch(lm, variables)
      >>> state["model.norm.weight"].shape, state["lm_head.weight"].shape
      ((8,), (7, 8))
    """
    layout = check_layout(layout) if layout else own_layout(model, variables)
    entries, flat = entries_of(model, variables, layout), flatten_dict(dict(variables))
    check_form(model, layout, entries)
    state = {}
    for entry in entries:
        arrays = entry.transform.to_torch(np.asarray(flat[entry.path]))
        for name, array in zip(entry.names, arrays, strict=True):
            state[name] = np.ascontiguousarray(array).reshape(array.shape)
    shapes = {name: array.shape for name, array in state.items()}
    extras = extras_of(model, shapes, layout, image_shape)
    return state | {name: extra.value for name, extra in extras.items()}


def arguments_of(state: State, norm: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model that the file decides: its size, `tied` and its norms.

    The size is `num_classes` or `vocab_size`. A model of tokens without a head of its
    own is tied. Norms are PRepBN with the schedule of the file's counters, or RepBN
    where the file has no other branch; running variances go on as PyTorch's. What the
    preset says of RepBN (its epsilon) stays.

    Args:
      state: arrays by name, without wrapper.
      norm: the norm of the preset, a dict with `name`.

    Raises:
      UserError: no array that tells the size, or norms that are not of the preset's
        kind.

    Example:
      >>> import numpy as np
      >>> from normjax import convert
      >>> state = {"head.weight": np.zeros((10, 192))}
      >>> convert.arguments_of(state, {"name": "layer_norm"})
      {'num_classes': 10, 'norm': {'name': 'layer_norm'}}
    """
    sizes: dict[str, Any] = {
        argument: len(state[name])
        for argument, (names, _, _) in SIZES.items()
        for name in names
        if name in state
    }
    if not sizes:
        names = " or ".join(names[0] for names, _, _ in SIZES.values())
        raise UserError(f"the file lacks {names}: the size of the model is unknown")
    name, kind = norm["name"], norm_kind(state)
    if (name in ("prepbn", "repbn")) != (kind is not None):
        kind = kind or "without running statistics"
        raise UserError(f"the norms of the file are {kind}, those of the model {name}")
    for head, table in TIED:
        if table in state and head not in state:
            sizes["tied"] = True
    return {
        **sizes,
        "norm": dict(norm) if kind is None else rebuilt_norm(norm, kind, state),
    }


def norm_kind(state: State) -> str | None:
    """ "prepbn" or "repbn", if a file has them; None for any other norm."""
    both, plain = _norms(state)
    return "prepbn" if both else "repbn" if plain else None


def rebuilt_norm(norm: Mapping[str, Any], kind: str, state: State) -> dict[str, Any]:
    """The norm of the preset as a PRepBN or RepBN of the file."""
    repbn = norm if norm["name"] == "repbn" else norm.get("batch_norm", "repbn")
    repbn = {"name": repbn} if isinstance(repbn, str) else repbn
    repbn = {**repbn, "unbiased_running_var": True}
    if kind == "repbn":
        return repbn
    given = norm if norm["name"] == kind else {"name": kind}
    arguments = {**given, "batch_norm": repbn, **_schedule(state)}
    if "decay_steps" in arguments:  # instead of fractions of a run
        for fraction in ("warmup_fraction", "decay_fraction"):
            arguments.pop(fraction, None)
    return arguments


def size_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model that the data fix, by `variables`."""
    params = flatten_dict(dict(variables["params"]), sep="/")
    sizes = {
        argument: params[path].shape[axis]
        for argument, (_, path, axis) in SIZES.items()
        if path in params
    }
    if sizes.get("num_classes") == sizes.get("vocab_size"):
        sizes.pop("num_classes", None)  # a head of tokens
    return sizes


def channels_of(state: State) -> int:
    """Channels of images: what the first layer reads, of several such the least."""
    widths = [(state[k].shape[1], n) for k, n in STEMS.items() if k in state]
    inputs = [width // n for width, ns in widths for n in ns if not width % n]
    if not inputs:
        raise UserError(f"the file lacks the first convolution ({', '.join(STEMS)})")
    return min(inputs)


def grouped(names: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """(names with # for numbers, how many, why) of arrays and their reasons."""
    counts = Counter((re.sub(r"\d+", "#", n), why) for n, why in names.items())
    return [(name, count, why) for (name, why), count in counts.items()]


def _ours(entry: Entry, state: State) -> np.ndarray:
    arrays = tuple(np.asarray(state[name]) for name in entry.names)
    try:
        ours = np.asarray(entry.transform.to_ours(arrays), entry.dtype)
    except UserError as error:
        raise UserError(f"{entry.names[0]} and its like: {error}") from None
    except (ValueError, IndexError):  # of other dims
        shapes = " and ".join(f"{n} {np.shape(state[n])}" for n in entry.names)
        raise UserError(f"the shape of {shapes} is of another layer") from None
    check_finite(" and ".join(entry.names), ours)
    return ours


def _without_repeats(state: State, shapes: Mapping) -> tuple[dict, dict[str, str]]:
    """The state without arrays that repeat another, and those."""
    state, dropped = dict(state), {}
    for name, other in TIED:
        if name not in state or name in shapes or other not in state:
            continue
        if not np.array_equal(state[name], state[other]):
            hint = "config.model.tied=False has a head of its own"
            raise UserError(f"{name} differs from {other}, the model is tied: {hint}")
        dropped[name] = f"equal to {other}, which serves twice"
        del state[name]
    return state, dropped


def _norms(state: State) -> tuple[list[str], list[str]]:
    """Modules that are a norm with both branches, and those that are a RepBN alone."""
    alphas = [k.removesuffix(".alpha") for k in state if k.endswith(".alpha")]
    outer = {a: a.removesuffix(".norm2") for a in alphas}
    inside = {a for a, x in outer.items() if a != x and f"{x}.norm1.weight" in state}
    return [outer[a] for a in inside], [a for a in alphas if a not in inside]


def _schedule(state: State) -> dict[str, int]:
    """The arguments that the counters stand for; those of all norms must agree."""
    found = {}
    for counter, argument in (("warm", "warmup_steps"), ("total_step", "decay_steps")):
        arrays = [a for name, a in state.items() if name.endswith(f".{counter}")]
        values = {int(value) for array in arrays for value in np.ravel(array)}
        if len(values) > 1:
            raise UserError(f"norms of the file differ in {counter}: {sorted(values)}")
        if any(values):
            found[argument] = values.pop()
    return found


def _completed(state: State, entries: list[Entry]) -> tuple[dict, dict[str, str]]:
    """The state with what PRepBN needs and evaluation does not, and what was added.

    Files may leave out the counters, and single norms may be a RepBN alone.
    """
    state, filled = dict(state), {}
    wanted = {name for entry in entries for name in entry.names}
    for entry in entries:
        if entry.path[-1] != "step":
            continue
        module = entry.names[0].removesuffix(".warm")
        if f"{module}.alpha" in state:
            for name, _ in REPBN.values():
                if f"{module}.{name}" in state:
                    state[f"{module}.norm2.{name}"] = state.pop(f"{module}.{name}")
            tracked = "bn.num_batches_tracked"
            state.pop(f"{module}.{tracked}", None)
            like = state[f"{module}.norm2.bn.weight"]
            for name, _ in LAYER_NORM.values():
                if f"{module}.norm1.{name}" not in wanted:
                    continue
                value = np.ones_like(like) if name == "weight" else np.zeros_like(like)
                state[f"{module}.norm1.{name}"] = value
                filled[f"{module}.norm1.{name}"] = "RepBN alone: as initialised"
        if entry.names[1] not in state:
            total = np.asarray(entry.transform.to_torch(np.zeros((), int))[2])
            values = np.zeros((), np.int64), np.zeros((), np.int64), total
            for name, value in zip(entry.names, values, strict=True):
                state[name] = value
                filled[name] = "no counters: after the decay"
    return state, filled


def _refuse(what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        rest = len(names) - _SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        raise UserError(f"the file {what} {', '.join(names[:_SHOWN])}{more}")
