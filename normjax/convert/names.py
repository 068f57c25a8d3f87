"""From the variables of a model to the names and shapes of a PyTorch state dict."""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from normjax.convert import layouts
from normjax.convert.transforms import Transform, named
from normjax.core.collections import TRANSIENT
from normjax.core.errors import UserError, one_of
from normjax.core.registry import unwrapped
from normjax.families import Family
from normjax.families.layout import (
    BATCH_NORM,
    LAYER_NORM,
    NORM,
    REPBN,
    Beside,
    Kind,
    prepbn,
)
from normjax.models import COMPONENTS, MODELS
from normjax.norms import PRepBN

Path = tuple[str, ...]


class Entry(NamedTuple):
    """One array of ours and its counterparts.

    Attributes:
      path: collection, modules, name.  shape, dtype: of ours.
      names: of theirs.  shapes: of theirs.  transform: between them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transform: Transform


def reads_images(model: nn.Module) -> bool:
    """Whether `model` is called with images, not with tokens.

    Args:
      model: of `models.build`.

    Example:
      >>> from normjax import convert, models
      >>> convert.reads_images(models.build("deit_tiny", num_classes=10))
      True
      >>> convert.reads_images(models.build("lm_tiny", vocab_size=7))
      False
    """
    entry = MODELS.entry_of(type(model))
    return entry is not None and "grid" in entry.tags


def abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Shapes and dtypes of the variables, for images [H, W, C] where it reads them."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if not reads_images(model):
        x = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return {k: v for k, v in variables.items() if k not in TRANSIENT}


def layouts_of(model: nn.Module, variables: Mapping[str, Any]) -> list[str]:
    """The published layouts with a place for every array of `variables`.

    They are those of one family, its own release first.

    Raises:
      UserError: there are none, or those of several families.
    """
    paths = ["/".join(key[1:]) for key in flatten_dict(dict(variables))]
    norms, kind = _norm_kinds(model), type(model).__name__
    if not (own := _of_its_kind(model)):
        raise UserError(f"no published layout for this {kind}")
    fitting = [
        name
        for name in own
        if all(
            _found(path, paths, layouts.LAYOUTS[name], norms, model) for path in paths
        )
    ]
    if not fitting:
        homeless = {name: _placed(model, variables, name)[1] for name in own}
        nearest = min(homeless, key=lambda name: len(homeless[name]))
        hint = _no_place(nearest, homeless[nearest])
        raise UserError(f"no published layout for this {kind}: {hint}")
    families = {layouts.FAMILY[name].name for name in fitting}
    if len(families) > 1:
        several = " and ".join(fitting)
        raise UserError(f"this {kind} fits the layouts {several}: name one (--layout)")
    return fitting


def _of_its_kind(model: nn.Module) -> list[str]:
    """The layouts of families with a preset of the model's class."""
    entry = MODELS.entry_of(type(model))
    return [
        name
        for name, family in layouts.FAMILY.items()
        if entry and any(p["name"] == entry.name for p in family.presets.values())
    ]


def form_of(family: Family, names: Collection[str]) -> dict[str, Any]:
    """Arguments of the models whose files hold these names (`Family.forms`)."""
    forms = [form for array, form in family.forms.items() if array in names]
    return {k: v for form in forms for k, v in form.items()}


def _other_form(model: nn.Module, family: Family, names: Collection[str]) -> str:
    """What keeps files with these arrays from being those of `model`; "" if nothing."""
    for argument, value in form_of(family, names).items():
        ours, theirs = getattr(model, argument), value
        if value is not None and argument in COMPONENTS:
            theirs = unwrapped(COMPONENTS[argument].factory(value))
            ours = ours and unwrapped(ours)
        if ours != theirs:
            return f"config.model.{argument}={value!r}"
    return ""


def check_form(model: nn.Module, layout: str, entries: list[Entry]) -> None:
    """Raises UserError where files of a layout are those of another form of `model`."""
    names = {name for entry in entries for name in entry.names}
    other = _other_form(model, layouts.FAMILY[layout], names)
    if other:
        raise UserError(f"files of the layout {layout!r} are of models with {other}")


def own_layout(model: nn.Module, variables: Mapping[str, Any]) -> str:
    """The first layout of a model that is of its form.

    Raises:
      UserError: there is none.
    """
    fitting = layouts_of(model, variables)
    for layout in fitting:
        names = {n for e in entries_of(model, variables, layout) for n in e.names}
        if not _other_form(model, layouts.FAMILY[layout], names):
            return layout
    return fitting[0]


def check_layout(name: str) -> str:
    """`name`, if it is that of a layout.

    Raises:
      UserError: it is not.
    """
    if name not in layouts.LAYOUTS:
        raise UserError(one_of("layout", name, layouts.LAYOUTS))
    return name


def entries_of(
    model: nn.Module, variables: Mapping[str, Any], layout: str
) -> list[Entry]:
    """Every array of `variables` (values, or shapes and dtypes) with its counterparts.

    Raises:
      UserError: an array that the layout has no place for.
    """
    placed, homeless = _placed(model, variables, layout)
    if homeless:
        raise UserError(_no_place(layout, homeless))
    entries = []
    for key, value, names, transform in placed:
        like = np.broadcast_to(np.zeros((), value.dtype), value.shape)
        try:
            shapes = tuple(t.shape for t in transform.to_torch(like))
        except (ValueError, IndexError):
            homeless = ["/".join(key) + f" of shape {value.shape}"]
            raise UserError(_no_place(layout, homeless)) from None
        entries.append(Entry(key, value.shape, value.dtype, names, shapes, transform))
    return entries


def _no_place(layout: str, homeless: list[str]) -> str:
    return f"layout {layout!r} has no place for {homeless[0]}"


def _placed(
    model: nn.Module, variables: Mapping[str, Any], layout: str
) -> tuple[list[tuple[Path, Any, tuple[str, ...], Transform]], list[str]]:
    """(key, array, their names, transform) of the arrays that have a place, and the
    paths of those that have none."""
    flat = flatten_dict(dict(variables))
    norms = _norm_kinds(model)
    paths = ["/".join(key[1:]) for key in flat]
    placed, homeless = [], []
    for key, value in flat.items():
        rows = layouts.LAYOUTS[layout]
        found = _found("/".join(key[1:]), paths, rows, norms, model)
        if found is None:
            homeless.append("/".join(key))
        else:
            placed.append((key, value, *found))
    return placed, homeless


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    """Of the paths of the arrays in a module of a row."""
    module = re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours)
    return re.compile(f"(?P<module>{module}){'/' if ours else ''}(?P<leaf>.+)")


def _norm_kinds(model: Any) -> list[Kind]:
    """The tables of norms, those of fewer arrays first."""
    schedule, norm = {}, model.norm
    if norm.func is PRepBN:
        given = {"warmup_steps": 0, **norm.keywords}
        schedule = {k: given[k] for k in ("warmup_steps", "decay_steps")}
    last = [prepbn(**schedule)] if schedule else []
    return [LAYER_NORM, BATCH_NORM, REPBN, *last]


def _beside(stage: int, block: int) -> dict[str, int]:
    """Numbers that follow from those of a stage and a block, as rows name them."""
    halves = {"pair": block // 2, "rest": block % 2, "after": block + 1}
    halves["later"] = block + 2
    doubled = {"odd": 2 * stage - 1, "even": 2 * stage}
    return {"next": stage + 1, "last": stage - 1, **doubled, **halves}


def _found(path: str, paths: list[str], rows: Any, norms: list[Kind], model: Any):
    """(their names, transform) of the array at `path` by the first row that has it."""
    for ours, theirs, kind in rows:
        found = _match(path, paths, ours, theirs, kind, norms, model)
        if found is not None:
            return found
    return None


def _match(path, paths, ours, theirs, kind, norms, model):
    """(their names, transform) of the array at `path` by one row, or None."""
    match = _pattern(ours).fullmatch(path)
    if match is None:
        return None
    module, leaf = match["module"], match["leaf"]
    if isinstance(kind, Beside):
        if f"{module.rpartition('/')[0]}/{kind.path}" not in paths:
            return None
        kind = kind.kind
    kind, order = kind if isinstance(kind, tuple) else (kind, None)
    if kind == NORM:
        start = f"{module}/"
        leaves = {p.removeprefix(start) for p in paths if p.startswith(start)}
        kind = next((k for k in norms if leaves <= set(k)), {})
    if order is not None:
        kind = {k: (n, order if f == "same" else f) for k, (n, f) in kind.items()}
    numbers = {k: int(v) for k, v in match.groupdict().items() if k in "si"}
    stage = numbers.get("s", 0)
    table: Any = kind(model, stage) if callable(kind) else kind
    if leaf not in table:
        return None
    prefix = theirs.format(**numbers, **_beside(stage, numbers.get("i", 0)))
    names, transform = table[leaf][0], named(table[leaf][1])
    names = (names,) if isinstance(names, str) else names
    return tuple(f"{prefix}.{name}" if prefix else name for name in names), transform
