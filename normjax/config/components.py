"""What the classes and functions that a config names say of its fields."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from normjax.core.registry import Registry
from normjax.mixers import CORES, RELATIVE_BIASES
from normjax.models import COMPONENTS, MODELS, PRESETS
from normjax.norms import NORMS
from normjax.optim import OPTIMIZERS, SCHEDULES
from normjax.optim.build import GIVEN

REGISTRIES: Mapping[str, Registry] = {
    **COMPONENTS,
    "qk_norm": NORMS,
    "layer_norm": NORMS,
    "batch_norm": NORMS,
    "core": CORES,
    "relative_bias": RELATIVE_BIASES,
    "image_tower": MODELS,
    "text_tower": MODELS,
}
"""Of the components that a component may take, by the name of the argument."""

ELSEWHERE = {
    "num_classes": "the data set says it",
    "vocab_size": "the tokenizer says it",
    "dtype": "set config.dtype",
    "param_dtype": "parameters are float32",
    "axis_name": "set config.sync_batch_stats",
}
"""Arguments that no config sets, and what does."""

PLAIN = (type(None), bool, int, float, tuple, str)
"""Types of values that a command line can give, the strictest first."""


class Argument(NamedTuple):
    """An argument of a component.

    Attributes:
      default: of the preset, else of the class; `dataclasses.MISSING` without any.
      kinds: those of `PLAIN` that it may be.
      registry: of what it names, if it names a component.
    """

    default: Any
    kinds: tuple[type, ...]
    registry: Registry | None = None

    @property
    def settable(self) -> bool:
        """Whether a command line can give it a value."""
        return self.registry is not None or any(k in PLAIN[1:] for k in self.kinds)


def arguments_of(kind: str, spec: Mapping[str, Any]) -> dict[str, Argument]:
    """The arguments of the component that `spec` names; none where it names none.

    Args:
      kind: the field that it stands in: "model", "norm", "mixer", ..., or "optim",
        which names an optimizer and its schedule.
    """
    if kind == "optim":
        rows = ((OPTIMIZERS, spec.get("name")), (SCHEDULES, spec.get("schedule")))
        return {
            name: argument
            for registry, row in rows
            if row in registry
            for name, argument in _of_function(registry[str(row)].make).items()
        }
    name, given = spec.get("name"), {}
    registry = MODELS if kind == "model" else REGISTRIES.get(kind, {})
    if registry is MODELS and name in PRESETS:
        given = PRESETS[name]
        name = given["name"]
    if name not in registry:
        return {}
    make: Any = registry[str(name)].make
    if not dataclasses.is_dataclass(make):
        return {}
    return {
        f.name: Argument(
            given.get(f.name, f.default),
            _kinds(f.type, given.get(f.name, f.default)),
            REGISTRIES.get(f.name),
        )
        for f in dataclasses.fields(make)
        if f.name not in ("name", "parent", *ELSEWHERE)
    }


def _of_function(make: Any) -> dict[str, Argument]:
    parameters = inspect.signature(make).parameters.values()
    return {
        p.name: Argument(p.default, _kinds(p.annotation, p.default))
        for p in parameters
        if p.kind is not p.POSITIONAL_ONLY and p.name not in GIVEN
    }


def settable(kind: str, spec: Mapping[str, Any]) -> dict[str, Argument]:
    """Those of them that a command line can give, and fractions of a run for steps."""
    found = {k: a for k, a in arguments_of(kind, spec).items() if a.settable}
    stems = [k.removesuffix("_steps") for k in found if k.endswith("_steps")]
    return {**found, **{f"{k}_fraction": Argument(0.0, (float,)) for k in stems}}


def renamed(kind: str, spec: Mapping[str, Any]) -> Mapping[str, str]:
    """What arguments of the component that `spec` names are called now, by old name."""
    name, registry = str(spec.get("name")), REGISTRIES.get(kind, {})
    return getattr(registry[name].make, "renamed", {}) if name in registry else {}


def with_todays_names(node: Any, kind: str = "model") -> Any:
    """`config.model` of an older run, its arguments called as they are now.

    Args:
      kind: the field that `node` stands in.
    """
    if isinstance(node, list | tuple):
        return type(node)(with_todays_names(value, kind) for value in node)
    if not isinstance(node, Mapping):
        return node
    now = renamed(kind, node)
    return {now.get(k, k): with_todays_names(value, k) for k, value in node.items()}


def _kinds(annotation: Any, default: Any) -> tuple[type, ...]:
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    parts = typing.get_args(annotation) if union else (annotation,)
    kinds = tuple(p for p in (typing.get_origin(p) or p for p in parts) if p in PLAIN)
    return kinds or tuple(k for k in (type(default),) if k in PLAIN)


def written_out(kind: str, spec: Any) -> Any:
    """`spec` of a component with every argument that it leaves to preset or class.

    Two configs with equal ones build the same, however they put it.
    """
    if isinstance(spec, list | tuple):
        return tuple(written_out(kind, one) for one in spec)
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping):
        return spec
    arguments = arguments_of(kind, spec)
    whole = {name: argument.default for name, argument in arguments.items()}
    whole.update(spec)
    is_model = kind == "model" or REGISTRIES.get(kind) is MODELS
    if is_model and spec.get("name") in PRESETS:
        whole["name"] = PRESETS[spec["name"]]["name"]
    return {
        name: written_out(name, value) if name in REGISTRIES else value
        for name, value in whole.items()
        if value is not dataclasses.MISSING
    }
