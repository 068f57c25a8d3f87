"""Stochastic gradient descent."""

from typing import Any

import optax

from normjax.optim.base import OPTIMIZERS


@OPTIMIZERS.register("sgd")
def sgd(
    rate: optax.Schedule,
    decayed: Any,
    /,
    *,
    beta1: float = 0.9,
    weight_decay: float = 0.05,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """Gradient descent with Nesterov's momentum (Sutskever et al., 2013).

        g <- g + weight_decay w        m <- beta1 m + g
        w <- w - rate (g + beta1 m), or rate m without `nesterov`

    Weight decay is part of the gradient (L2).

    Args:
      rate: the learning rate by update, a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1: weight of the old value in m.  weight_decay: added to the gradient.
      nesterov: whether the momentum looks ahead.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> sgd = optimizers.sgd(lambda step: 0.5, None, beta1=0.5, weight_decay=0.0)
      >>> params = jnp.zeros(1)
      >>> state = sgd.init(params)
      >>> updates, state = sgd.update(jnp.array([4.0]), state, params)
      >>> print(updates)  # -0.5 (4 + 0.5 * 4)
      [-3.]
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.sgd(rate, momentum=beta1, nesterov=nesterov),
    )
