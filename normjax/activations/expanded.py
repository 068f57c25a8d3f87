"""Activations x * gate(x) whose gate is expanded beyond [0, 1]: xATLU, xGELU, xSiLU."""

import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations.base import ACTIVATIONS
from normjax.core.moments import at_least_float32


def expanded_gate(gate: jax.Array, alpha: jax.Array) -> jax.Array:
    """gate * (1 + 2 alpha) - alpha: from (0, 1) to (-alpha, 1 + alpha) (Huang, 2024).

    Args:
      gate: [...].  alpha: [].

    Returns:
      [...].
    """
    return gate * (1 + 2 * alpha) - alpha


class ExpandedGate(nn.Module):
    """y = x * (gate(x) * (1 + 2 alpha) - alpha) (Huang, 2024).

    One `alpha` [] per activation, 0 at first, where y = x * gate(x).

    Attributes:
      alpha_init: of `alpha`.  param_dtype: of the parameter.
    """

    alpha_init: float = 0.0
    param_dtype: Dtype = jnp.float32

    gate: ClassVar[Callable[[jax.Array], jax.Array]]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, init = at_least_float32(x), nn.initializers.constant(self.alpha_init)
        alpha = self.param("alpha", init, (), self.param_dtype).astype(wide.dtype)
        return (wide * expanded_gate(self.gate(wide), alpha)).astype(x.dtype)


@ACTIVATIONS.register("xatlu")
class XATLU(ExpandedGate):
    """ExpandedGate with gate(x) = arctan(x) / pi + 1 / 2."""

    gate = staticmethod(lambda x: jnp.arctan(x) / math.pi + 0.5)


@ACTIVATIONS.register("xgelu")
class XGELU(ExpandedGate):
    """ExpandedGate with gate(x) = Phi(x), the normal distribution function."""

    gate = staticmethod(lambda x: 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


@ACTIVATIONS.register("xsilu")
class XSiLU(ExpandedGate):
    """ExpandedGate with gate(x) = 1 / (1 + exp(-x))."""

    gate = staticmethod(jax.nn.sigmoid)
