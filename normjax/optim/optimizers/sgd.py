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
) -> optax.GradientTransformation:
    """With Nesterov's momentum beta1; weight decay is part of the gradient (L2).

    g <- g + weight_decay w        m <- beta1 m + g
    w <- w - rate (g + beta1 m)
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.sgd(rate, momentum=beta1, nesterov=True),
    )
