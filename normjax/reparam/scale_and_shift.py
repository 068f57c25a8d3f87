"""SSF: scale and shift of a layer's output."""

import dataclasses
from typing import ClassVar

import jax

from normjax.core.moments import at_least_float32
from normjax.reparam.base import (
    BIAS,
    KERNEL,
    REPARAMS,
    SCALE,
    Reparameterization,
    per_unit,
)


def scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """x * scale + shift along the last axis (SSF; Lian et al., 2022).

    Args:
      x: [..., C].  scale, shift: [C].

    Returns:
      [..., C].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> x, scale = jnp.array([[1.0, 2.0]]), jnp.array([10.0, 100.0])
      >>> print(reparam.scale_and_shift(x, scale, jnp.array([0.5, 0.0])))
      [[ 10.5 200. ]]
    """
    return x * per_unit(scale, x) + per_unit(shift, x)


@REPARAMS.register("scale_and_shift")
@dataclasses.dataclass(frozen=True)
class ScaleAndShift(Reparameterization):
    """SSF: y = layer(x) * scale + shift behind a frozen layer (Lian et al., 2022).

    As weights: W' = W scale, b' = b scale + shift, and the same of `scale` and `bias`
    of a norm. A layer without bias gets one. Learns `ssf_scale` and `ssf_shift` [C];
    to freeze everything else is the optimizer's part (`trainable="ssf_|head"`).

    Attributes:
      std: of the initial values, `ssf_scale` about 1 and `ssf_shift` about 0.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> ssf = reparam.ScaleAndShift()
      >>> own, state = ssf.create({"kernel": jnp.ones((2, 3))}, jax.random.key(0))
      >>> {name: array.shape for name, array in sorted(own.items())}
      {'ssf_scale': (3,), 'ssf_shift': (3,)}
    """

    std: float = 0.02

    own: ClassVar[tuple[str, ...]] = ("ssf_scale", "ssf_shift")
    on_norms: ClassVar[bool] = True

    def create(self, layer, key):
        """`ssf_scale` and `ssf_shift`."""
        weight = layer[KERNEL] if KERNEL in layer else layer[SCALE]
        noise = self.std * jax.random.normal(key, (2, weight.shape[-1]), weight.dtype)
        return {"ssf_scale": 1 + noise[0], "ssf_shift": noise[1]}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` or `scale`, and `bias`, are replaced; see the class."""
        del train
        scale, shift = (at_least_float32(own[f"ssf_{k}"]) for k in ("scale", "shift"))
        name = KERNEL if KERNEL in layer else SCALE
        weight = at_least_float32(layer[name])
        bias = scale * at_least_float32(layer[BIAS]) if BIAS in layer else 0
        return {name: weight * per_unit(scale, weight), BIAS: bias + shift}, state
