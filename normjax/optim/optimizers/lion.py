"""Lion."""

from typing import Any

import optax

from normjax.optim.base import OPTIMIZERS


@OPTIMIZERS.register("lion")
def lion(
    rate: optax.Schedule,
    decayed: Any,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.05,
) -> optax.GradientTransformation:
    """The sign of a momentum, with decoupled weight decay (Chen et al., 2023).

        w <- w - rate (sign(beta1 m + (1 - beta1) g) + weight_decay w)
        m <- beta2 m + (1 - beta2) g

    Args:
      rate: the learning rate by update, a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1: weight of m in the step.  beta2: weight of the old value in m.
      weight_decay: times the rate.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> transformation = optimizers.lion(lambda step: 0.5, None, weight_decay=0.0)
      >>> params = jnp.zeros(2)
      >>> state = transformation.init(params)
      >>> updates, state = transformation.update(jnp.array([3.0, -0.1]), state, params)
      >>> print(updates)  # the sign alone
      [-0.5  0.5]
    """
    return optax.lion(rate, b1=beta1, b2=beta2, weight_decay=weight_decay, mask=decayed)
