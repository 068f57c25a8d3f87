"""From a config to an optax transformation."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.core.arguments import field_names
from normjax.core.errors import UserError, one_of
from normjax.core.registry import Registry, with_defaults
from normjax.core.scanned import is_scanned
from normjax.optim.base import OPTIMIZERS, SCHEDULES, TRANSFORMATIONS, is_of_updates
from normjax.optim.groups import (
    REST,
    Group,
    check_found,
    groups_of,
    labels,
    path_name,
)
from normjax.optim.sharpness import perturbed

PARTS: Mapping[str, tuple[Registry, str]] = {
    "name": (OPTIMIZERS, "adamw"),
    "schedule": (SCHEDULES, "cosine"),
}
"""Fields that name a row whose arguments are other fields; the row, if absent."""

OWN: Mapping[str, Any] = {
    "clip_norm": 1.0,
    "adaptive_clip": 0.0,
    "project_weights": False,
    "transformations": (),
    "groups": (),
    "sam_rho": 0.0,
    "mup_base_width": 0,
    "trainable": ".*",
    "frozen_statistics": False,
}
"""Fields that are arguments of neither, and what they are if absent."""

EVERYWHERE = frozenset(
    {
        "lr",
        "warmup_fraction",
        "final_lr_fraction",
        "weight_decay",
        "beta1",
        "beta2",
    }
)
"""Arguments that all configs have, whatever their optimizer and schedule take."""

GIVEN = frozenset({"scanned"})
"""Arguments that `build` gives an optimizer, not a config."""

NO_DECAY = {
    "pos_embed",
    "cls_token",
    "dist_token",
    "positional_encoding",
    "relative_position_bias",
    "expert_bias",
}


def learning_rate(config: Any, total_steps: int, factor: Any = 1.0) -> optax.Schedule:
    """The learning rate by update, of `schedule`, a key of `SCHEDULES`.

    Args:
      config: with its arguments; as of `build`.
      total_steps: optimizer updates of the whole run.
      factor: of the rate, whatever the update; may be traced.

    Raises:
      UserError: an unknown schedule, or arguments that it does not take.

    Example:
      >>> from normjax import optim
      >>> config = {"schedule": "cosine", "lr": 0.5, "warmup_fraction": 0.1}
      >>> rate = optim.learning_rate(config, total_steps=100)
      >>> float(rate(0)), float(rate(5)), float(rate(10))
      (0.0, 0.25, 0.5)
    """
    return _times(factor, _factories(config)["schedule"](total_steps))


def build(
    config: Any, total_steps: int, scanned: tuple[str, ...] = (), factor: Any = 1.0
) -> optax.GradientTransformation:
    """The gradient transformation that `config` describes.

    In order: parameters that are not trainable are left out of everything; gradients
    are clipped unit by unit to `adaptive_clip` of the weights, then their global norm
    to `clip_norm` (0: not); then come `transformations` of gradients, the optimizer
    `name` with its schedule, and transformations of updates; `project_weights` brings
    weights back to their initial norm. Weight decay applies to arrays of two or more
    dims that are no tables of positions.

    Args:
      config: a mapping with `name`, a key of `OPTIMIZERS`, and its arguments;
        `schedule`, and its arguments; `clip_norm, adaptive_clip, project_weights,
        transformations, trainable`; `groups`, see `groups.Group`. What is absent is as
        in configs.
      total_steps: optimizer updates of the whole run.
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).
      factor: of the learning rate, of every update, may be traced; not in the state.

    Raises:
      UserError: an unknown name or argument, a pattern that is no regular expression,
        or a warmup that leaves nothing of the run; when the state is made, a pattern
        that finds nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> config = {"name": "lion", "warmup_fraction": 0.0, "trainable": "norm"}
      >>> transformation = optim.build(config, total_steps=100)
      >>> params = {"fc": {"kernel": jnp.ones((1, 1))}, "norm": {"scale": jnp.ones(1)}}
      >>> state = transformation.init(params)
      >>> grads = params  # of 1
      >>> updates, state = transformation.update(grads, state, params)
      >>> print(updates["fc"]["kernel"], updates["norm"]["scale"])
      [[0.]] [-0.001]
    """
    made, own = _factories(config), {**OWN, **_fields(config)}
    made["name"] = with_defaults(made["name"], scanned=scanned)
    groups = groups_of(own["groups"])
    _trainable(own["trainable"])
    rate = _times(factor, made["schedule"](total_steps))
    decayed = functools.partial(_decayed, scanned)
    optimizer = made["name"](rate, decayed)
    if groups:
        parts: dict[Any, Any] = {
            str(i): _of_group(group, made["name"], rate, decayed, scanned)
            for i, group in enumerate(groups)
            if group.trainable is not False
        }
        found = functools.partial(labels, groups, scanned=scanned)
        optimizer = optax.partition({REST: optimizer, **parts}, found)
    transformation = _around(optimizer, _transformations(own), scanned)
    if not groups and own["trainable"] == ".*":
        return transformation

    parts = {"train": transformation, "freeze": optax.set_to_zero()}
    return optax.partition(parts, functools.partial(roles, config, scanned=scanned))


def roles(config: Any, params: Any, scanned: tuple[str, ...] = ()) -> Any:
    """ "train" or "freeze" of every parameter, as `config.optim` says.

    Args:
      config: as of `build`.  params: a tree of parameters.
      scanned: names at the root of parameters with a first axis of layers.

    Raises:
      UserError: a pattern that finds nothing, or nothing that is trained.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> params = {"fc": {"kernel": jnp.ones((1, 1))}, "norm": {"scale": jnp.ones(1)}}
      >>> optim.roles({"trainable": "norm"}, params)
      {'fc': {'kernel': 'freeze'}, 'norm': {'scale': 'train'}}
    """
    own = {**OWN, **_fields(config)}
    groups, trainable = groups_of(own["groups"]), _trainable(own["trainable"])
    found = labels(groups, params, scanned)
    check_found(groups, found)
    chosen = jax.tree_util.tree_map_with_path(
        functools.partial(_role, groups, trainable), found
    )
    if "train" not in jax.tree.leaves(chosen):
        pattern = f"config.optim.trainable {own['trainable']!r}"
        beside = " that config.optim.groups leaves trainable" if groups else ""
        raise UserError(f"{pattern} matches no parameter{beside}")
    return chosen


def perturbation(
    config: Any, scanned: tuple[str, ...] = ()
) -> Callable[[Any, Any], Any] | None:
    """(params, gradients) -> `perturbed` by `config.optim.sam_rho`, or None at 0.

    What is not trained stays where it is, and its gradients count in no norm.

    Args:
      config: as of `build`.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> move = optim.perturbation({"sam_rho": 0.5, "trainable": "b"})
      >>> params = {"a": jnp.zeros(1), "b": jnp.zeros(2)}
      >>> there = move(params, {"a": jnp.ones(1), "b": jnp.array([3.0, 4.0])})
      >>> print(there["a"], there["b"])
      [0.] [0.3 0.4]
    """
    rho = _fields(config).get("sam_rho", 0.0)
    if not rho:
        return None

    def move(params, gradients):
        role = roles(config, params, scanned)
        trained = jax.tree.map(
            lambda g, role: g if role == "train" else jnp.zeros_like(g), gradients, role
        )
        return perturbed(params, trained, rho)

    return move


def updates_made(opt_state: Any, steps: jax.Array) -> jax.Array:
    """Updates that the learning rate's schedule has counted; a skipped one is none.

    Args:
      opt_state: of the optimizer.  steps: given where its rate has no schedule.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.build({"name": "adamw"}, total_steps=100)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = transformation.init(params)
      >>> _, state = transformation.update(params, state, params)
      >>> int(optim.updates_made(state, steps=jnp.array(7)))
      1
    """
    scheduled = optax.ScaleByScheduleState

    def is_scheduled(part):
        return isinstance(part, scheduled)

    parts = jax.tree.leaves(opt_state, is_leaf=is_scheduled)
    return next((part.count for part in parts if is_scheduled(part)), steps)


def _times(factor: Any, rate: optax.Schedule) -> optax.Schedule:
    return lambda count: factor * rate(count)


def _fields(config: Any) -> dict[str, Any]:
    return {name: config[name] for name in config}


def _factories(config: Any) -> dict[str, Callable[..., Any]]:
    """Optimizer and schedule with their arguments, by the fields that name them.

    Raises:
      UserError: an unknown name, or an argument that neither takes.
    """
    fields, made, taken = _fields(config), {}, set[str]()
    for field, (registry, default) in PARTS.items():
        name = fields.get(field, default)
        if name not in registry:
            names = [entry.name for entry in registry]
            raise UserError(one_of(f"config.optim.{field}", name, names))
        takes = set(field_names(registry[name].make)) - GIVEN
        given = {k: v for k, v in fields.items() if k in takes}
        made[field] = registry.factory({"name": name, **given})
        taken |= takes
    known = {*PARTS, *OWN, *taken}
    for name in fields:
        if name not in known | EVERYWHERE:
            parts = " and ".join(str(fields.get(f, d)) for f, (_, d) in PARTS.items())
            what = f"field of config.optim, with {parts}:"
            raise UserError(one_of(what, name, known))
    return made


def _transformations(own: Mapping[str, Any]) -> list[Any]:
    """Specs of all of them, in order; those of fields of their own among them."""
    found = list(_specs(own["transformations"]))
    if own["clip_norm"]:
        found.insert(0, {"name": "clip_by_global_norm", "max_norm": own["clip_norm"]})
    if own["adaptive_clip"]:
        found.insert(0, {"name": "adaptive_clip", "clip": own["adaptive_clip"]})
    if own["project_weights"]:
        found.append("normalize_and_project")
    return found


def _around(
    optimizer: optax.GradientTransformation,
    specs: Sequence[Any],
    scanned: tuple[str, ...],
) -> optax.GradientTransformation:
    """`optimizer` behind those of gradients, before those of updates."""
    before, after = [], []
    for spec in specs:
        make = with_defaults(TRANSFORMATIONS.factory(spec), scanned=scanned)
        (after if is_of_updates(make.func) else before).append(make())
    return optax.chain(*before, optimizer, *after)


def _specs(given: Any) -> Sequence[Any]:
    """One spec, or several."""
    return [given] if isinstance(given, str | Mapping) else given


def _of_group(
    group: Group,
    make: Callable[..., Any],
    rate: optax.Schedule,
    decayed: Any,
    scanned: tuple[str, ...],
) -> optax.GradientTransformation:
    if group.weight_decay is not None:
        make, decayed = functools.partial(make, weight_decay=group.weight_decay), None
    optimizer = make(lambda count: group.learning_rate * rate(count), decayed)
    own = [] if group.transformation is None else _specs(group.transformation)
    return _around(optimizer, own, scanned) if own else optimizer


def _trainable(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.optim.trainable {pattern!r}: {error}") from None


def _role(groups: Sequence[Group], trainable: re.Pattern, path: Any, label: str) -> str:
    """Whether the parameter is trained: as its group says, else by the pattern."""
    said = None if label == REST else groups[int(label)].trainable
    found = trainable.search(path_name(path)) is not None if said is None else said
    return "train" if found else "freeze"


def _decayed(scanned: tuple[str, ...], params: Any) -> Any:
    def decays(path, x):
        rank = x.ndim - is_scanned(path_name(path), scanned)
        return rank > 1 and path[-1].key not in NO_DECAY

    return jax.tree_util.tree_map_with_path(decays, params)
