"""Where layers of a network look, as what another one is to look at."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.tasks.base import Batch, Inputs
from normjax.tasks.distillation import Distilled

SMALL = 1e-24
"""Of a square: a layer that gives nothing but zeros has a map of zeros."""


def attention_map(features: jax.Array) -> jax.Array:
    """q / ||q||_2, q_n the mean over channels of the squares at position n.

    Of any width (attention transfer; Zagoruyko & Komodakis, 2017).

    Args:
      features: what a layer gives, [B, ..., C].

    Returns:
      [B, N] in at least float32, N positions row by row.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> features = jnp.array([[[3.0, 3.0], [0.0, 0.0]]])
      >>> print(tasks.attention_map(features))
      [[1. 0.]]
    """
    q = jnp.mean(jnp.square(at_least_float32(features)), axis=-1)
    q = q.reshape(len(q), -1)
    length = jnp.sum(jnp.square(q), axis=-1, keepdims=True)
    return q * jax.lax.rsqrt(jnp.maximum(length, SMALL))


def attention_transfer_loss(
    features: Sequence[jax.Array], maps: Sequence[jax.Array]
) -> jax.Array:
    """sum_l mean_{b,n} (attention_map(F_l) - A_l)_bn^2 (Zagoruyko & Komodakis, 2017).

    As the authors compute it; the paper has the norm of the difference, which has no
    gradient where there is none.

    Args:
      features: F_l of layers of the student, [B, ..., C_l] each.
      maps: A_l, `attention_map` of as many layers of the teacher, [B, N_l] each.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> features, maps = jnp.array([[[3.0], [0.0]]]), jnp.array([[0.0, 1.0]])
      >>> print(tasks.attention_transfer_loss([features], [maps]))
      1.0
    """
    pairs = zip(features, maps, strict=True)
    terms = [jnp.mean(jnp.square(attention_map(f) - a)) for f, a in pairs]
    return sum(terms, jnp.zeros([]))


@dataclasses.dataclass(frozen=True)
class FeaturesDistilled(Distilled):
    """`Distilled`, and layers of the student that are to look where the teacher's do.

        Distilled's loss + feature_weight * attention_transfer_loss

    Outputs are (logits, features of layers) and the teacher gives the same, its layers
    in the order of the student's; see `train.teacher`.

    Attributes:
      own, weight, temperature, largest: as of `Distilled`.
      teacher: (inputs, keyword inputs) -> (logits, features of layers).
      feature_weight: of the layers; 1,000 of the authors.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Classification, FeaturesDistilled
      >>> own = Classification(num_classes=2, mean=(0.0,), std=(1.0,))
      >>> teacher = lambda x, known: (jnp.zeros((1, 2)), (jnp.eye(2)[None],))
      >>> objective = FeaturesDistilled(own, teacher, weight=0.0, feature_weight=1.0)
      >>> batch = {
      ...     "image": jnp.zeros((1, 1, 1, 1), jnp.uint8),
      ...     "label": jnp.zeros(1, int),
      ... }
      >>> _, targets = objective.examples(batch, jax.random.key(0))
      >>> outputs = jnp.zeros((1, 2)), (3 * jnp.eye(2)[None],)
      >>> print(objective.loss(outputs, targets)[1]["features"].round(3))  # alike
      0.0
    """

    feature_weight: float = 1000.0

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, tuple]:
        """Inputs, and (targets of `Distilled`, the teacher's maps)."""
        inputs, targets = self.own.examples(batch, key)
        logits, features = self.teacher(*inputs)
        maps = tuple(attention_map(part) for part in features)
        given = targets, self.probabilities(logits)
        return inputs, (given, jax.lax.stop_gradient(maps))

    def loss(self, outputs, targets):
        """The sum, and "features", the part of the layers without its weight."""
        (logits, features), (given, maps) = outputs, targets
        loss, scalars = super().loss(logits, given)
        part = attention_transfer_loss(features, maps)
        return loss + self.feature_weight * part, {**scalars, "features": part}
