"""Groups of parameters that are updated otherwise than the rest, by their paths."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from normjax.core.arguments import check_arguments
from normjax.core.errors import UserError, one_line
from normjax.core.scanned import paths_of_layers

WHERE = "config.optim.groups"
REST = "rest"
"""Label of the parameters that no rule finds."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A rule for the parameters that it is the first to find.

    Attributes:
      pattern: regular expression, searched in the path "blocks_0/mlp/fc1/kernel".
      learning_rate: factor of the schedule.
      weight_decay: of all these parameters, in place of the optimizer's; None: as
        without the rule, which spares vectors and tables of positions.
      trainable: whether they are; None: as `config.optim.trainable` says.
      transformation: of their gradients or updates alone: a key of `TRANSFORMATIONS`,
        or a dict with its `name` and arguments.

    Example:
      >>> from normjax import optim
      >>> group = optim.Group("norm|bias", weight_decay=0.0)
      >>> group.finds("blocks_0/norm1/scale"), group.finds("head/kernel")
      (True, False)
      >>> config = {"groups": ({"pattern": "norm|bias", "weight_decay": 0.0},)}
      >>> transformation = optim.build(config, total_steps=100)
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None
    trainable: bool | None = None
    transformation: Any = None

    def finds(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None


def groups_of(rules: Sequence[Mapping[str, Any]]) -> tuple[Group, ...]:
    """The groups of a config.

    Args:
      rules: dicts with `pattern` and other arguments of `Group`.

    Raises:
      UserError: anything that is wrong with one of them.
    """
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        kind = type(rules).__name__
        raise UserError(f"{WHERE} takes a sequence of rules, got a {kind}")
    return tuple(_group(f"{WHERE}[{i}]", rule) for i, rule in enumerate(rules))


def _group(where: str, rule: Any) -> Group:
    if not isinstance(rule, Mapping) or "pattern" not in rule:
        raise UserError(f"{where} needs a pattern, got {one_line(rule)}")
    check_arguments(where, Group, rule)
    group = Group(**rule)
    try:
        re.compile(group.pattern)
    except re.error as error:
        raise UserError(f"{where}: pattern {group.pattern!r}: {error}") from None
    without_effect = sorted(set(rule) - {"pattern", "trainable"})
    if group.trainable is False and without_effect:
        raise UserError(
            f"{where} is not trainable: {without_effect[0]} has no effect there"
        )
    return group


def labels(groups: Sequence[Group], params: Any, scanned: Sequence[str]) -> Any:
    """The number of the first rule that finds a parameter, as a string, or `REST`.

    Raises:
      UserError: rules tell apart the layers of a model that scans them.
    """

    def label(path, x) -> str:
        name = path_name(path)
        layers = paths_of_layers(name, scanned, x.shape[0] if x.ndim else 0)
        found = {_first(groups, (name, layer)) for layer in layers}
        if len(found) > 1:
            raise UserError(
                f"{WHERE} tells apart layers of {name!r}, which are one array: set "
                "config.model.scan_layers to false"
            )
        return found.pop()

    return jax.tree_util.tree_map_with_path(label, params)


def check_found(groups: Sequence[Group], found: Any) -> None:
    """Raise UserError unless every rule finds a parameter.

    Args:
      found: the labels of all parameters.
    """
    known = set(jax.tree.leaves(found))
    for i, group in enumerate(groups):
        if str(i) not in known:
            before = " that no rule before it finds" if i else ""
            raise UserError(
                f"{WHERE}[{i}]: pattern {group.pattern!r} finds no parameter{before}"
            )


def path_name(path: tuple) -> str:
    """ "blocks_0/mlp/fc1/kernel" of a key path."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _first(groups: Sequence[Group], names: Sequence[str]) -> str:
    numbers = (i for i, g in enumerate(groups) if any(map(g.finds, names)))
    return str(next(numbers, REST))
