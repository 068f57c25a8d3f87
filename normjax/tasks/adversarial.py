"""Adversarial examples that are made beside an update (ConAdv; Liu et al., 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from normjax.tasks.base import Around, Batch, Inputs


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


@dataclasses.dataclass(frozen=True)
class Attacked(Around):
    """The mean loss of clean and adversarial examples (ConAdv; Liu et al., 2022).

    Outputs are (logits of clean, logits of adversarial examples); see
    `train.adversarial`. The model is called with `attack`: "start", x plus uniform
    noise in +-epsilon or x, [B, H, W, C]; "targets" [B, K], those of another class at
    random or the true ones; "low" and "high" [B, 1, 1, C], black and white.

    Attributes:
      own: the objective of images, with `num_classes`, `mean` and `std`.
      epsilon: largest change of a normalised pixel.
      targeted: at a random other class, not away from the true ones.
      noise: probability that a batch is attacked from x plus noise.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Attacked, Classification
      >>> own = Classification(num_classes=2, mean=(0.5,), std=(0.5,))
      >>> images = jnp.zeros((1, 2, 2, 1), jnp.uint8)
      >>> batch = {"image": images, "label": jnp.array([1])}
      >>> objective = Attacked(own, epsilon=0.1)
      >>> (_, known), _ = objective.examples(batch, jax.random.key(0))
      >>> print(known["attack"]["targets"], known["attack"]["low"].ravel())
      [[1. 0.]] [-1.]
    """

    epsilon: float
    targeted: bool = True
    noise: float = 0.8

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs with `attack`, and the own targets."""
        key, at, near, whether = jax.random.split(key, 4)
        (x, known), targets = self.own.examples(batch, key)
        own: Any = self.own
        attacked = targets
        if self.targeted:
            shift = jax.random.randint(at, batch["label"].shape, 1, own.num_classes)
            others = (batch["label"] + shift) % own.num_classes
            attacked = jax.nn.one_hot(others, own.num_classes)
        moved = jax.random.uniform(near, x.shape, x.dtype, -self.epsilon, self.epsilon)
        noisy = jax.random.bernoulli(whether, self.noise)
        mean, std = (jnp.asarray(v, x.dtype) for v in (own.mean, own.std))
        rows = len(x), 1, 1, x.shape[-1]
        attack = {
            "start": jnp.where(noisy, x + moved, x),
            "targets": attacked,
            "low": jnp.broadcast_to((0 - mean) / std, rows),
            "high": jnp.broadcast_to((1 - mean) / std, rows),
        }
        return (x, {**known, "attack": attack}), targets

    def loss(self, outputs: Any, targets: Any):
        """The mean, and "adversarial", the loss of the adversarial examples."""
        clean, scalars = self.own.loss(outputs[0], targets)
        other, _ = self.own.loss(outputs[1], targets)
        return (clean + other) / 2, {**scalars, "adversarial": other}
