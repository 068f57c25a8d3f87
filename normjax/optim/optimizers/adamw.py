"""AdamW."""

from typing import Any

import optax

from normjax.optim.base import OPTIMIZERS


@OPTIMIZERS.register("adamw")
def adamw(
    rate: optax.Schedule,
    decayed: Any,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.05,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019).

        m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
        w <- w - rate (m' / (sqrt(v') + epsilon) + weight_decay w)

    with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at update t = 1, 2, ...

    Args:
      rate: the learning rate by update, a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in m and v.
      epsilon: added to the root.  weight_decay: times the rate.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> transformation = optimizers.adamw(lambda step: 0.1, None, weight_decay=0.5)
      >>> params = jnp.array([2.0, 0.0])
      >>> state = transformation.init(params)
      >>> updates, state = transformation.update(jnp.array([3.0, -3.0]), state, params)
      >>> print(updates.round(3))  # -0.1 (1 + 0.5 * 2), 0.1
      [-0.2  0.1]
    """
    return optax.adamw(
        rate,
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=weight_decay,
        mask=decayed,
    )
