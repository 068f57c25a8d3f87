"""Reparameterizations without statistics of the kernel as a whole.

Weight normalization (length and direction), Weight Compander (a bounded function of
every weight), SSF (scale and shift of a layer's output).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.reparam.base import (
    BIAS,
    KERNEL,
    REPARAMS,
    SCALE,
    Reparameterization,
    fan_in_axes,
    per_unit,
)


def unit_norms(kernel: jax.Array) -> jax.Array:
    """Euclidean norm [out] of the weights of every output unit, in at least float32."""
    squares = jnp.square(at_least_float32(kernel))
    return jnp.sqrt(jnp.sum(squares, fan_in_axes(kernel)))


def weight_normalize(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """gain v / |v| per output unit (Salimans & Kingma, 2016). v = 0 gives NaN.

    Args:
      kernel: v, [..., in, out].  gain: [out].

    Returns:
      [..., in, out] in at least float32.
    """
    length = at_least_float32(gain) / unit_norms(kernel)
    return at_least_float32(kernel) * per_unit(length, kernel)


def compand_weight(
    kernel: jax.Array, amplitude: jax.Array, width: jax.Array
) -> jax.Array:
    """amplitude arctan(v / width), entry by entry (Cakaj, Mehnert & Yang, 2023).

    Bounded by amplitude * pi / 2; steeper at 0 than elsewhere, so that weights leave 0.

    Args:
      kernel: v, of any shape.  amplitude, width: scalars.

    Returns:
      the shape of `kernel` in at least float32.
    """
    wide, width = at_least_float32(kernel), at_least_float32(width)
    return at_least_float32(amplitude) * jnp.arctan(wide / width)


def scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """x * scale + shift along the last axis (SSF; Lian et al., 2022).

    Args:
      x: [..., C].  scale, shift: [C].
    """
    return x * per_unit(scale, x) + per_unit(shift, x)


@REPARAMS.register("weight_normalization")
@dataclasses.dataclass(frozen=True)
class WeightNormalization(Reparameterization):
    """Length and direction of every output unit's weights (Salimans & Kingma, 2016).

    See `weight_normalize`. Learns `gain` [out], which starts at the norms of the
    initial kernel: the effective kernel then is that one. The paper's initialisation
    from a batch of data is left out.
    """

    own: ClassVar[tuple[str, ...]] = ("gain",)

    def create(self, layer, key):
        """`gain`."""
        del key
        kernel = layer[KERNEL]
        return {"gain": unit_norms(kernel).astype(kernel.dtype)}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        return {**layer, KERNEL: weight_normalize(layer[KERNEL], own["gain"])}, state


@REPARAMS.register("weight_compander")
@dataclasses.dataclass(frozen=True)
class WeightCompander(Reparameterization):
    """Every weight through a learned bounded function (Cakaj, Mehnert & Yang, 2023).

    See `compand_weight`. Learns the scalars `amplitude` and `width`, which start at the
    given multiples of the root mean square of the initial kernel.

    Attributes:
      amplitude, width: these multiples. Small weights start as they are where both are
        equal.
    """

    amplitude: float = 1.0
    width: float = 1.0

    own: ClassVar[tuple[str, ...]] = ("amplitude", "width")

    def create(self, layer, key):
        """`amplitude` and `width`."""
        del key
        kernel = layer[KERNEL]
        size = jnp.sqrt(jnp.mean(jnp.square(at_least_float32(kernel))))
        size = jnp.where(size > 0, size, 1).astype(kernel.dtype)
        return {"amplitude": self.amplitude * size, "width": self.width * size}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        kernel = compand_weight(layer[KERNEL], own["amplitude"], own["width"])
        return {**layer, KERNEL: kernel}, state


@REPARAMS.register("scale_and_shift")
@dataclasses.dataclass(frozen=True)
class ScaleAndShift(Reparameterization):
    """SSF: y = layer(x) * scale + shift behind a frozen layer (Lian et al., 2022).

    As weights: W' = W scale, b' = b scale + shift, and the same of `scale` and `bias`
    of a norm. A layer without bias gets one. Learns `ssf_scale` and `ssf_shift` [C];
    to freeze everything else is the optimizer's part (`trainable="ssf_|head"`).

    Attributes:
      std: of the initial values, `ssf_scale` about 1 and `ssf_shift` about 0.
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
