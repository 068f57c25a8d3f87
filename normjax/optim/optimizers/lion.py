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
    """
    return optax.lion(rate, b1=beta1, b2=beta2, weight_decay=weight_decay, mask=decayed)
