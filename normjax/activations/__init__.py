"""Elementwise non-linearities as modules, so that those with parameters fit in as well.

Every one is called `activation()(x) -> y` with x: [...] and y of its shape and dtype.
"""

import functools
from typing import Any

from normjax.activations.autorep import (
    AutoReP,
    RelayState,
    relay,
    relay_state,
    relu_budget_penalty,
    relu_polynomial,
    straight_mask,
)
from normjax.activations.base import ACTIVATIONS
from normjax.activations.expanded import XATLU, XGELU, XSiLU, expanded_gate
from normjax.activations.fatrelu import FATReLU, fatrelu
from normjax.activations.helu import HeLU, helu
from normjax.activations.prelu import PReLU
from normjax.activations.relu_interpolation import ReLUInterpolation
from normjax.activations.scaled import ScaledGELU, ScaledReLU, ScaledSiLU
from normjax.activations.smelu import SmeLU, smelu
from normjax.activations.standard import (
    GELU,
    Identity,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from normjax.activations.swish import Swish
from normjax.core.gelu import gelu
from normjax.core.registry import Spec

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "XATLU",
    "XGELU",
    "AutoReP",
    "FATReLU",
    "HeLU",
    "Identity",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "ReLU6",
    "ReLUInterpolation",
    "RelayState",
    "ScaledGELU",
    "ScaledReLU",
    "ScaledSiLU",
    "SiLU",
    "Sigmoid",
    "SmeLU",
    "Swish",
    "Tanh",
    "XSiLU",
    "build",
    "expanded_gate",
    "fatrelu",
    "gelu",
    "helu",
    "relay",
    "relay_state",
    "relu_budget_penalty",
    "relu_polynomial",
    "smelu",
    "straight_mask",
]


def build(spec: Spec, **arguments: Any) -> functools.partial:
    """An activation factory: `build("gelu", approximate=True)()` is a Flax module.

    Args:
      spec: registry key, a dict with `name` and arguments, or a ready factory.
      **arguments: arguments of the module where the spec gives none.

    Raises:
      UserError: unknown key or argument; the message lists near matches.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> smelu = activations.build("smelu", beta=2.0)
      >>> print(smelu().apply({}, jnp.array([-2.0, 0.0, 2.0])))
      [0.  0.5 2. ]
    """
    return ACTIVATIONS.factory(spec, **arguments)
