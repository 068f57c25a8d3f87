"""Optimizers that do not grow the norms of scale-invariant weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.core.accumulate import einsum
from normjax.optim.base import OPTIMIZERS
from normjax.optim.per_parameter import per_parameter, zeros


def projected(
    p: jax.Array,
    g: jax.Array,
    u: jax.Array,
    *,
    delta: float = 0.1,
    epsilon: float = 1e-8,
    axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """(u without its part along scale-invariant weights, whether it was projected).

    Rows are the output units, then the whole array. Where |cos(g_i, p_i)| is below
    delta / sqrt(length) in all rows:  n_i = p_i / (|p_i| + epsilon),
    u_i <- u_i - n_i <n_i, u_i>.

    Args:
      p: parameters.  g: their gradient.  u: the proposed direction; all [...].
      delta: of the test.  epsilon: of the norms.  axis: of the output units.
    """
    if p.ndim < 2:
        return u, jnp.zeros([], bool)
    length = p.size // p.shape[axis]

    def by_unit(a, b):
        columns = jnp.moveaxis(a * b, axis, -1).reshape(length, -1)
        # A product with ones: XLA on a CPU is slow at sums along the first axis.
        return einsum("i,io->o", jnp.ones(length, columns.dtype), columns)

    def tangent(size, length):
        squares, gradients, along, steps = size
        norm = jnp.sqrt(squares)
        cosine = jnp.abs(along) / jnp.maximum(jnp.sqrt(gradients), epsilon)
        cosine = cosine / jnp.maximum(norm, epsilon)
        invariant = jnp.max(cosine) < delta / length**0.5
        return invariant, steps / jnp.square(norm + epsilon)

    units = [by_unit(*pair) for pair in ((p, p), (g, g), (g, p), (p, u))]
    by_channel, channel = tangent(units, length)
    by_layer, layer = tangent([jnp.sum(unit) for unit in units], p.size)
    part = jnp.where(by_channel, channel, jnp.where(by_layer, layer, 0))
    shape = [1] * p.ndim
    shape[axis] = -1
    return u - part.reshape(shape) * p, by_channel | by_layer


@OPTIMIZERS.register("adamp")
def adamp(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.05,
    delta: float = 0.1,
    decay_ratio: float = 0.1,
    nesterov: bool = False,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam that leaves out its part along scale-invariant weights (Heo et al., 2021).

        u = m / (sqrt(v') + epsilon)        w <- w (1 - rate weight_decay r)
        w <- w - rate P(u) / (1 - beta1^t)

    with m, v as Adam's, v' = v / (1 - beta2^t). P removes the part along the weights of
    an output unit, or of the whole array, where gradients are orthogonal to them; then
    r = decay_ratio, else P(u) = u and r = 1. Vectors are never projected.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in m and v.
      epsilon: added to the root and to norms.  weight_decay: times the rate.
      delta: gradients are orthogonal below this cosine, times 1 / sqrt(length).
      decay_ratio: factor of the decay of what is projected.
      nesterov: u has beta1 m + (1 - beta1) g for m.  axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> adamp = optimizers.adamp(0.5, weight_decay=0.0)
      >>> params = jnp.array([[1.0], [0.0]])
      >>> updates, _ = adamp.update(params[::-1], adamp.init(params), params)
      >>> print(
      ...     updates.ravel()
      ... )  # orthogonal to the weights: nothing of it is along them
      [ 0.  -0.5]
    """

    def step(parameter, t, g, p, kept):
        m = beta1 * kept["m"] + (1 - beta1) * g
        v = beta2 * kept["v"] + (1 - beta2) * g * g
        above = beta1 * m + (1 - beta1) * g if nesterov else m
        u = above / (jnp.sqrt(v / (1 - beta2**t)) + epsilon)
        u, found = projected(p, g, u, delta=delta, epsilon=epsilon, axis=axis)
        u = u / (1 - beta1**t)
        if parameter.decays:
            u = u + weight_decay * jnp.where(found, decay_ratio, 1.0) * p
        return u, {"m": m, "v": v}

    direction = per_parameter(zeros("m", "v"), step, decayed=decayed, scanned=scanned)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))


@OPTIMIZERS.register("sgdp")
def sgdp(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    dampening: float = 0.0,
    epsilon: float = 1e-8,
    weight_decay: float = 0.05,
    delta: float = 0.1,
    decay_ratio: float = 0.1,
    nesterov: bool = False,
    project_buffer: bool = False,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Momentum without its part along scale-invariant weights (Heo et al., 2021).

        m <- beta1 m + (1 - dampening) g        d = m, or g + beta1 m with nesterov
        w <- w (1 - rate weight_decay r / (1 - beta1)) - rate P(d)

    P and r as in `adamp`.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1: weight of the old value in m.  dampening: 1 minus that of the gradient.
      epsilon: added to norms.  weight_decay: times the rate.
      delta: gradients are orthogonal below this cosine, times 1 / sqrt(length).
      decay_ratio: factor of the decay of what is projected.
      nesterov: d = g + beta1 m.
      project_buffer: m itself is projected without nesterov, as in the published code.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> sgdp = optimizers.sgdp(0.5, weight_decay=0.0)
      >>> params = jnp.array([[1.0], [0.0]])
      >>> updates, _ = sgdp.update(params[::-1], sgdp.init(params), params)
      >>> print(updates.ravel())
      [ 0.  -0.5]
    """

    def step(parameter, t, g, p, kept):
        m = beta1 * kept["m"] + (1 - dampening) * g
        u = g + beta1 * m if nesterov else m
        u, found = projected(p, g, u, delta=delta, epsilon=epsilon, axis=axis)
        if project_buffer and not nesterov:
            m = u
        if parameter.decays:
            ratio = jnp.where(found, decay_ratio, 1.0)
            u = u + weight_decay / (1 - beta1) * ratio * p
        return u, {"m": m}

    direction = per_parameter(zeros("m"), step, decayed=decayed, scanned=scanned)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))
