"""The registry of models, and what those with stages share."""

import functools
from collections.abc import Callable
from typing import Any

from normjax.core.errors import UserError
from normjax.core.registry import Registry

MODELS = Registry("model")
"""The models by key: a row has `name`, `make` (the class) and `tags`.

`build` makes a model of a key or of a preset (`PRESETS`) and of keys of its components.

Example:
  >>> from normjax.models import MODELS
  >>> MODELS["vit"].make.__name__
  'ViT'
  >>> "causal" in MODELS["decoder"].tags
  True
"""


def patterns_of(value: Any, stages: int) -> tuple[tuple[Any, ...], ...]:
    """What the layers of each stage have in turn, layer i the (i mod n)-th of n.

    Args:
      value: one for all; one per stage, each of which may be a pattern of several; or,
        where there is one stage, its pattern.

    Raises:
      UserError: a list of another length than `stages`, or an empty pattern.
    """
    if stages == 1 and isinstance(value, list | tuple):
        value = (value,)
    each = in_stages(value, stages)
    if any(isinstance(v, list | tuple) and not v for v in each):
        raise UserError(f"a pattern of layers needs at least one value: {value}")
    return tuple(tuple(v) if isinstance(v, list | tuple) else (v,) for v in each)


def in_stages(value: Any, stages: int) -> tuple[Any, ...]:
    """One value per stage: those of a list or tuple, or the same for all.

    Raises:
      UserError: a list of another length.
    """
    if not isinstance(value, list | tuple):
        return (value,) * stages
    if len(value) != stages:
        raise UserError(f"{len(value)} values for {stages} stages: {value}")
    return tuple(value)


def widened(mixer: Any, made: Callable[[int], Callable[..., Any]], dim: int) -> Any:
    """The mixers of a one-stage model that stay as wide inside in a narrower stream.

    Args:
      mixer: a factory, or those of the layers in turn.
      made: function of a layer's number to its factory, complete.
      dim: width of the stream before.

    Raises:
      UserError: a mixer that cannot be wider inside than the stream.
    """
    several = mixer if isinstance(mixer, list | tuple) else (mixer,)
    new = []
    for i, factory in enumerate(several):
        module = made(i)(parent=None)
        if not hasattr(module, "inner_widths"):
            name = type(module).__name__
            raise UserError(f"{name} cannot be wider inside than the stream")
        new.append(functools.partial(factory, **module.inner_widths(dim)))
    return tuple(new) if isinstance(mixer, list | tuple) else new[0]
