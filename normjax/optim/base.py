"""Registries of what an optimizer is made of.

A row is a function; the arguments of a config are its keyword arguments, what comes
before the slash `build` gives it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from normjax.core.registry import Registry

_Make = TypeVar("_Make", bound=Callable[..., Any])

OPTIMIZERS = Registry("optimizer", home="normjax.optim")
"""The optimizers by key: `make(rate, decayed, /, **arguments)` of a row.

It gives an `optax.GradientTransformation`. `rate` is the learning rate, a schedule,
`decayed` the tree of bools by parameter that says which decay, as a function of the
parameters, or None for all.

Example:
  >>> from normjax.optim import OPTIMIZERS
  >>> "adamw" in OPTIMIZERS, OPTIMIZERS["adamw"].make.__name__
  (True, 'adamw')
"""

SCHEDULES = Registry("schedule", home="normjax.optim")
"""The schedules by key: `make(total_steps, /, **arguments)` of a row.

It gives the learning rate by update.

Example:
  >>> from normjax.optim import SCHEDULES
  >>> schedule = SCHEDULES["cosine"].make(100, lr=0.5, warmup_fraction=0.1)
  >>> float(schedule(0)), float(schedule(10))
  (0.0, 0.5)
"""

TRANSFORMATIONS = Registry("transformation", home="normjax.optim")
"""The transformations by key: `make(**arguments)` of a row.

It gives an `optax.GradientTransformation`, of gradients or of updates. One that treats
scanned layers apart has an argument `scanned`, which `build` gives it.

Example:
  >>> from normjax.optim import TRANSFORMATIONS
  >>> "adaptive_clip" in TRANSFORMATIONS, TRANSFORMATIONS["adaptive_clip"].make.__name__
  (True, 'adaptive_clip')
"""


def of_updates(make: _Make) -> _Make:
    """Mark a transformation that comes behind the optimizer: it changes updates."""
    setattr(make, "of_updates", True)  # noqa: B010  # functions declare no attributes
    return make


def is_of_updates(make: Any) -> bool:
    """Whether it is marked so; the others come before the optimizer."""
    return getattr(make, "of_updates", False)
