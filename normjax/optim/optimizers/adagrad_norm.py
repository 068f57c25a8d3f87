"""AdaGrad with one accumulator for all parameters, or for each unit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.core.moments import at_least_float32
from normjax.optim.base import OPTIMIZERS
from normjax.optim.per_parameter import from_rows, per_parameter, rows_of, scheduled


class AdaGradNormState(NamedTuple):
    """The accumulator b, a scalar."""

    b: jax.Array


@OPTIMIZERS.register("clipped_adagrad_norm")
def clipped_adagrad_norm(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    clip: float = 1.0,
    initial: float = 1.0,
    reweight: float = 1.0,
    delay: bool = False,
    weight_decay: float = 0.05,
) -> optax.GradientTransformation:
    """AdaGrad-Norm of clipped gradients (Chezhegov et al., 2024).

        h = g min(1, clip / |g|)        b'^2 = b^2 + reweight |h|^2
        w <- w (1 - rate weight_decay) - rate h / b'

    with the norm of all gradients. Clip-RAdaGradD is `delay`, h / b, and a `reweight`
    other than 1.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      clip: largest norm of all gradients.  initial: b at first.
      reweight: of the squared norm in b'.  delay: the step is by b, not b'.
      weight_decay: times the rate; 0 in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> arguments = {"clip": 5.0, "delay": True, "weight_decay": 0.0}
      >>> adagrad = optimizers.clipped_adagrad_norm(0.5, **arguments)
      >>> params = jnp.array([6.0, 8.0])  # of norm 10
      >>> updates, _ = adagrad.update(params, adagrad.init(params), params)
      >>> print(updates)
      [-1.5 -2. ]
    """

    def init(params):
        types = [at_least_float32(x).dtype for x in jax.tree.leaves(params)]
        return AdaGradNormState(jnp.asarray(initial, jnp.result_type(*types)))

    def update(updates, state, params=None):
        del params
        updates = jax.tree.map(at_least_float32, updates)
        size = optax.tree.norm(updates)
        h = jax.tree.map(
            lambda g: g * jnp.minimum(1, clip / jnp.where(size > 0, size, clip)),
            updates,
        )
        square = sum(jnp.sum(x * x) for x in jax.tree.leaves(h))
        b = jnp.sqrt(state.b**2 + reweight * square).astype(state.b.dtype)
        by = state.b if delay else b
        return jax.tree.map(lambda x: x / by, h), AdaGradNormState(b)

    direction = optax.GradientTransformation(init, update)
    return scheduled(direction, rate, weight_decay, decayed)


@OPTIMIZERS.register("adagrad_unit_norm")
def adagrad_unit_norm(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    epsilon: float = 1e-10,
    initial: float = 0.01,
    weight_decay: float = 0.05,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """AdaGrad with one accumulator for each output unit (Lau et al., 2024).

        s <- s + |g|^2 of a unit
        w <- w (1 - rate weight_decay) - rate g / (sqrt(s) + epsilon)

    Every entry of a vector is a unit.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      epsilon: added to the root.  initial: s at first.
      weight_decay: times the rate; 0 in the published code.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> adagrad = optimizers.adagrad_unit_norm(0.5, initial=0.0, weight_decay=0.0)
      >>> params = jnp.array([[3.0], [4.0]])
      >>> updates, _ = adagrad.update(params, adagrad.init(params), params)
      >>> print(updates.ravel())
      [-0.3 -0.4]
    """

    def start(parameter, p):
        units = p.shape[axis] if p.ndim else 1
        return {"s": jnp.full([units, 1], initial, p.dtype)}

    def step(parameter, t, g, p, kept):
        rows = rows_of(g, axis) if g.ndim else g.reshape(1, 1)
        s = kept["s"] + jnp.sum(rows * rows, 1, keepdims=True)
        u = rows / (jnp.sqrt(s) + epsilon)
        return from_rows(u, g, axis) if g.ndim else u.reshape(()), {"s": s}

    direction = per_parameter(start, step, scanned=scanned)
    return scheduled(direction, rate, weight_decay, decayed)
