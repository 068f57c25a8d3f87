"""Registries of what an optimizer is made of.

A row is a function; the arguments of a config are its keyword arguments, what comes
before the slash `build` gives it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from normjax.core.registry import Registry

_Make = TypeVar("_Make", bound=Callable[..., Any])

OPTIMIZERS = Registry("optimizer", home="normjax.optim")
"""`make(rate, decayed, /, **arguments)` -> `optax.GradientTransformation`.

rate: the learning rate, a schedule.  decayed: the tree of bools by parameter that
says which decay, as a function of the parameters; None: all.
"""

SCHEDULES = Registry("schedule", home="normjax.optim")
"""`make(total_steps, /, **arguments)` -> the learning rate by update."""

TRANSFORMATIONS = Registry("transformation", home="normjax.optim")
"""`make(**arguments)` -> `optax.GradientTransformation`, of gradients or of updates.

One that treats scanned layers apart has an argument `scanned`, which `build` gives it.
"""


def of_updates(make: _Make) -> _Make:
    """Mark a transformation that comes behind the optimizer: it changes updates."""
    setattr(make, "of_updates", True)  # noqa: B010  # functions declare no attributes
    return make


def is_of_updates(make: Any) -> bool:
    """Whether it is marked so; the others come before the optimizer."""
    return getattr(make, "of_updates", False)
