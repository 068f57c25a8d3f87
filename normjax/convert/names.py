"""From the variables of a model to the names and shapes of a PyTorch state dict."""

import re
from collections.abc import Mapping
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
from normjax.families.layout import (
    BATCH_NORM,
    LAYER_NORM,
    NORM,
    REPBN,
    Kind,
    prepbn,
)
from normjax.models import MODELS
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
    homeless = {n: _placed(model, variables, n)[1] for n in layouts.LAYOUTS}
    fitting = [name for name, without in homeless.items() if not without]
    kind = type(model).__name__
    if not fitting:
        nearest = min(homeless, key=lambda name: len(homeless[name]))
        hint = _no_place(nearest, homeless[nearest])
        raise UserError(f"no published layout for this {kind}: {hint}")
    families = {layouts.FAMILY[name].name for name in fitting}
    if len(families) > 1:
        several = " and ".join(fitting)
        raise UserError(f"this {kind} fits the layouts {several}: name one (--layout)")
    return fitting


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
        shapes = tuple(t.shape for t in transform.to_torch(like))
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
        path, found = "/".join(key[1:]), None
        for ours, theirs, kind in layouts.LAYOUTS[layout]:
            found = found or _match(path, paths, ours, theirs, kind, norms)
        if found is None:
            homeless.append("/".join(key))
        else:
            placed.append((key, value, *found))
    return placed, homeless


def _norm_kinds(model: Any) -> list[Kind]:
    """The tables of norms, those of fewer arrays first."""
    schedule, norm = {}, model.norm
    if norm.func is PRepBN:
        given = {"warmup_steps": 0, **norm.keywords}
        schedule = {k: given[k] for k in ("warmup_steps", "decay_steps")}
    last = [prepbn(**schedule)] if schedule else []
    return [LAYER_NORM, BATCH_NORM, REPBN, *last]


def _match(path, paths, ours, theirs, kind, norms):
    """(their names, transform) of the array at `path` by one row, or None."""
    pattern = re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours)
    slash = "/" if ours else ""
    match = re.fullmatch(f"(?P<module>{pattern}){slash}(?P<leaf>.+)", path)
    if match is None:
        return None
    module, leaf = match["module"], match["leaf"]
    if kind == NORM:
        start = f"{module}/"
        leaves = {p.removeprefix(start) for p in paths if p.startswith(start)}
        kind = next((k for k in norms if leaves <= set(k)), {})
    if leaf not in kind:
        return None
    numbers = {k: int(v) for k, v in match.groupdict().items() if k in "si"}
    stage = numbers.get("s", 0)
    prefix = theirs.format(**numbers, next=stage + 1, last=stage - 1)
    names, transform = kind[leaf][0], named(kind[leaf][1])
    names = (names,) if isinstance(names, str) else names
    return tuple(f"{prefix}.{name}" if prefix else name for name in names), transform
