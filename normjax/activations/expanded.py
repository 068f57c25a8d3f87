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
      gate: [...], values of a gate in [0, 1].  alpha: [], 0 leaves it as it is.

    Returns:
      [...].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> gate = jnp.array([0.0, 0.5, 1.0])
      >>> print(activations.expanded_gate(gate, jnp.array(0.25)))
      [-0.25  0.5   1.25]
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
    """y = x * (g * (1 + 2 alpha) - alpha), g = arctan(x) / pi + 1/2 (Huang, 2024).

    Attributes:
      alpha_init: of the learned scalar `alpha` []; 0 gives y = x * gate(x).
      param_dtype: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-1.0, 0.0, 1.0])
      >>> y, variables = activations.XATLU().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))  # arctan(1) / pi is a quarter
      [-0.25 0. 0.75]
      >>> print(variables["params"]["alpha"])
      0.0
    """

    gate = staticmethod(lambda x: jnp.arctan(x) / math.pi + 0.5)


@ACTIVATIONS.register("xgelu")
class XGELU(ExpandedGate):
    """y = x * (Phi(x) * (1 + 2 alpha) - alpha), Phi the normal CDF (Huang, 2024).

    Attributes:
      alpha_init: of the learned scalar `alpha` []; 0 gives y = x * gate(x).
      param_dtype: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-9.0, 0.0, 9.0])
      >>> xgelu = activations.XGELU(alpha_init=0.5)
      >>> y, _ = xgelu.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))  # the gate goes from -0.5 to 1.5
      [4.5 0. 13.5]
    """

    gate = staticmethod(lambda x: 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


@ACTIVATIONS.register("xsilu")
class XSiLU(ExpandedGate):
    """y = x * (sigmoid(x) * (1 + 2 alpha) - alpha) (Huang, 2024).

    Attributes:
      alpha_init: of the learned scalar `alpha` []; 0 gives y = x * gate(x).
      param_dtype: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-1.0, 0.0, 1.0])
      >>> y, variables = activations.XSiLU().init_with_output(jax.random.key(0), x)
      >>> bool(jnp.allclose(y, jax.nn.silu(x))), variables["params"]["alpha"].shape
      (True, ())
    """

    gate = staticmethod(jax.nn.sigmoid)
