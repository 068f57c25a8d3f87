"""Adversarial examples that are made beside an update (ConAdv; Liu et al., 2022)."""

import jax
import jax.numpy as jnp


def adversarial_examples(
    x: jax.Array,
    start: jax.Array,
    gradient: jax.Array,
    *,
    epsilon: float,
    step: float,
    targeted: bool = False,
    low: float = -1.0,
    high: float = 1.0,
) -> jax.Array:
    """clip(x_0 +/- step sign(g)) to within epsilon of x and to [low, high].

    ConAdv takes g with weights of the step before, and trains on x and on this, each
    with statistics, scales and biases of BatchNorm of its own: one step, targeted at
    another class, from x plus noise in 4 of 5 batches, epsilon = step = 9 * 2 / 255.

    Args:
      x: clean examples, [B, ...].  start: x_0, where the gradient was taken.
      gradient: g of the cross entropy by x_0, against the attacked labels.
      epsilon: largest change.  step: of the attack.
      targeted: down the loss of other labels, not up that of the true ones.
      low, high: of allowed inputs.

    Returns:
      [B, ...], a constant of the gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> x, gradient = jnp.array([0.0, 0.9]), jnp.array([-3.0, 0.1])
      >>> print(tasks.adversarial_examples(x, x, gradient, epsilon=0.2, step=0.5))
      [-0.2 1.]
    """
    sign = -1 if targeted else 1
    moved = start + sign * step * jnp.sign(gradient)
    bounds = (jnp.clip(x + e, low, high) for e in (-epsilon, epsilon))
    return jax.lax.stop_gradient(jnp.clip(moved, *bounds))
