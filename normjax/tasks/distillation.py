"""Targets that a network gives: its own of the last epoch, or a teacher's, stored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.moments import at_least_float32
from normjax.tasks.base import Around, Batch, Inputs


def progressive_weight(epoch: int, epochs: int, last: float = 0.8) -> float:
    """last (epoch + 1) / epochs: how much PS-KD believes itself (Kim et al., 2021).

    Args:
      epoch: 0, 1, ...  epochs: all of them.  last: of the last one.

    Example:
      >>> from normjax import tasks
      >>> [tasks.progressive_weight(epoch, 4) for epoch in (0, 3)]
      [0.2, 0.8]
    """
    return last * (epoch + 1) / epochs


def progressive_targets(
    labels: jax.Array, predictions: jax.Array, weight: float
) -> jax.Array:
    """(1 - weight) one_hot + weight P (PS-KD; Kim et al., 2021).

    P are what softmax gave for the example the last time it was trained on, one epoch
    before, and its one-hot label in the first. The loss is the cross entropy of these
    targets alone, without a temperature.

    Args:
      labels: int [B].  predictions: P, [B, K].  weight: see `progressive_weight`.

    Returns:
      [B, K] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> predictions = jnp.array([[0.5, 0.25, 0.25]])
      >>> print(tasks.progressive_targets(jnp.array([0]), predictions, 0.5))
      [[0.75 0.125 0.125]]
    """
    wide = at_least_float32(predictions)
    hard = jax.nn.one_hot(labels, wide.shape[-1], dtype=wide.dtype)
    return (1 - weight) * hard + weight * wide


def largest_probabilities(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of softmax(logits), as TinyViT stores them (Wu et al., 2022).

    Args:
      logits: [B, K], K up to 32,767.  k: 100 of 1,000 classes in the paper.

    Returns:
      (float16 [B, k], the largest first; int16 [B, k], their classes).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> values, classes = tasks.largest_probabilities(jnp.array([[0.0, 0.0, 9.0]]), 1)
      >>> print(values, classes)
      [[1.]] [[2]]
    """
    values, classes = jax.lax.top_k(jax.nn.softmax(at_least_float32(logits)), k)
    return values.astype(jnp.float16), classes.astype(jnp.int16)


def dense_targets(values: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
    """Stored probabilities at their classes, what is left of 1 spread over the others.

    (1 - sum of the stored) / (K - k) each; rounding of float16 can make it slightly
    negative (TinyViT; Wu et al., 2022).

    Args:
      values: [B, k].  classes: int [B, k].  num_classes: K, more than k.

    Returns:
      [B, K] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> values, classes = jnp.array([[0.5]], jnp.float16), jnp.array([[1]])
      >>> print(tasks.dense_targets(values, classes, 3))
      [[0.25 0.5  0.25]]
    """
    wide = values.astype(jnp.result_type(float))
    rest = (1 - jnp.sum(wide, -1, keepdims=True)) / (num_classes - wide.shape[-1])
    rows = jnp.broadcast_to(rest, (len(wide), num_classes))
    return jnp.put_along_axis(rows, classes.astype(jnp.int32), wide, -1, inplace=False)


def pack_records(seeds, classes, values) -> np.ndarray:
    """Bytes of a row in TinyViT's order: seed, k classes, k probabilities; 4 + 4 k.

    Little endian on every machine.

    Args:
      seeds: int32 [B], from which the image was augmented.
      classes: int16 [B, k].  values: float16 [B, k].

    Returns:
      uint8 [B, 4 + 4 k].

    Example:
      >>> import numpy as np
      >>> from normjax import tasks
      >>> records = tasks.pack_records([7], [[3]], [[1.0]])
      >>> records.shape, records[0, :6].tolist()
      ((1, 8), [7, 0, 0, 0, 3, 0])
    """
    parts = (np.asarray(seeds, "<i4")[:, None], np.asarray(classes, "<i2"))
    parts = (*parts, np.asarray(values, "<f2"))
    return np.concatenate([np.ascontiguousarray(p).view(np.uint8) for p in parts], 1)


def unpack_records(records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seeds, classes, values) of `pack_records`.

    Args:
      records: uint8 [B, 4 + 4 k].

    Example:
      >>> from normjax import tasks
      >>> seeds, classes, values = tasks.unpack_records(
      ...     tasks.pack_records([7], [[3]], [[0.5]])
      ... )
      >>> seeds.tolist(), classes.tolist(), values.tolist()
      ([7], [[3]], [[0.5]])
    """
    records = np.ascontiguousarray(records)
    k = (records.shape[1] - 4) // 4
    parts = np.split(records, [4, 4 + 2 * k], axis=1)
    kinds = zip(parts, ("<i4", "<i2", "<f2"), strict=True)
    seeds, classes, values = (np.ascontiguousarray(p).view(t) for p, t in kinds)
    return seeds[:, 0], classes, values


def distillation_loss(
    logits: jax.Array, targets: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """T^2 KL(p || softmax(z / T)), mean over all rows (Hinton et al., 2015).

    The square keeps gradients as large whatever the temperature is.

    Args:
      logits: z, [..., K].  targets: p, the teacher's softmax(z' / T), [..., K].
      temperature: T.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> p = jnp.array([[0.5, 0.5]])
      >>> print(tasks.distillation_loss(jnp.array([[2.0, 2.0]]), p))
      0.0
    """
    p = at_least_float32(targets)
    log_q = jax.nn.log_softmax(at_least_float32(logits) / temperature)
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    return temperature**2 * jnp.mean(jnp.sum(p * (log_p - log_q), -1))


@dataclasses.dataclass(frozen=True)
class Distilled(Around):
    """An objective with a teacher beside the labels.

        (1 - weight) own loss + weight T^2 KL(teacher || student)

    The teacher sees what the student sees, augmented and mixed, as it is evaluated.

    Attributes:
      own: the objective, whose outputs are logits.
      teacher: (inputs, keyword inputs) -> logits.
      weight: of the teacher.  temperature: T, of both.
      largest: probabilities of the teacher that count, the others being equal
        (TinyViT's targets; Wu et al., 2022); 0: all.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Classification, Distilled
      >>> own = Classification(num_classes=2, mean=(0.0,), std=(1.0,))
      >>> objective = Distilled(own, lambda x, known: jnp.array([[0.0, 0.0]]))
      >>> batch = {
      ...     "image": jnp.zeros((1, 1, 1, 1), jnp.uint8),
      ...     "label": jnp.zeros(1, int),
      ... }
      >>> _, targets = objective.examples(batch, jax.random.key(0))
      >>> loss, scalars = objective.loss(jnp.zeros((1, 2)), targets)
      >>> print(loss.round(3), scalars["distillation"])  # half of log(2)
      0.347 0.0
    """

    teacher: Callable[[Any, Any], Any]
    weight: float = 0.5
    temperature: float = 1.0
    largest: int = 0

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs, and (own targets, the teacher's probabilities [..., K])."""
        inputs, targets = self.own.examples(batch, key)
        return inputs, (targets, self.probabilities(self.teacher(*inputs)))

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """What the teacher's logits [..., K] are as targets: [..., K]."""
        found = jax.nn.softmax(at_least_float32(logits) / self.temperature)
        if self.largest:
            largest = jax.lax.top_k(found, self.largest)
            found = dense_targets(*largest, num_classes=logits.shape[-1])
        return jax.lax.stop_gradient(found)

    def loss(self, outputs: jax.Array, targets: Any):
        """The sum, and "distillation", the teacher's part without its weight."""
        given, probabilities = targets
        own, scalars = self.own.loss(outputs, given)
        part = distillation_loss(outputs, probabilities, self.temperature)
        loss = (1 - self.weight) * own + self.weight * part
        return loss, {**scalars, "distillation": part}


@dataclasses.dataclass(frozen=True)
class SelfDistilled(Around):
    """Targets mixed with predictions of the epoch before (PS-KD; Kim et al., 2021).

        t_i = (1 - w) own target + w P_i

    and the own target where there is no P_i yet. Outputs are (logits, P), P being 0
    where there is none; see `train.self_distill`. Batches hold "example", the numbers
    of the examples, int32 [B], which the model is called with, and "own_weight", w,
    float32 [B].

    Attributes:
      own: the objective, of logits and targets [B, K].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Classification, SelfDistilled
      >>> own = Classification(num_classes=2, mean=(0.0,), std=(1.0,))
      >>> objective = SelfDistilled(own)
      >>> outputs = jnp.zeros((1, 2)), jnp.array([[0.25, 0.75]])
      >>> targets = jnp.array([[1.0, 0.0]]), jnp.array([0.4])
      >>> loss, scalars = objective.loss(outputs, targets)
      >>> print(loss.round(3))  # log(2)
      0.693
    """

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs with the numbers of the examples, and (own targets, w)."""
        (x, known), targets = self.own.examples(batch, key)
        known = {**known, "example": batch["example"]}
        return (x, known), (targets, batch["own_weight"])

    def loss(self, outputs: Any, targets: Any):
        """The loss of the mixed targets; scalars are of the own ones."""
        (logits, before), (own, weight) = outputs, targets
        seen = jnp.sum(before, -1, keepdims=True) > 0
        mixed = own + jnp.where(seen, weight[:, None] * (before - own), 0)
        return self.own.loss(logits, mixed)[0], self.own.loss(logits, own)[1]


@dataclasses.dataclass(frozen=True)
class Recorded(Around):
    """Targets that a teacher has stored, without labels (TinyViT; Wu et al., 2022).

    Batches hold "values", float16 [B, k], and "classes", int16 [B, k], of
    `largest_probabilities`; the loss is the cross entropy of `dense_targets`.

    Attributes:
      own: the objective, of logits and targets [B, K].  num_classes: K.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Classification, Recorded
      >>> own = Classification(num_classes=3, mean=(0.0,), std=(1.0,))
      >>> batch = {"image": jnp.zeros((1, 1, 1, 1)), "label": jnp.array([0])}
      >>> batch |= {"values": jnp.array([[0.5]]), "classes": jnp.array([[1]])}
      >>> _, targets = Recorded(own, 3).examples(batch, jax.random.key(0))
      >>> print(targets)
      [[0.25 0.5  0.25]]
    """

    num_classes: int

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs, and the stored targets [B, K]."""
        inputs, _ = self.own.examples(batch, key)
        found = batch["values"], batch["classes"]
        return inputs, dense_targets(*found, num_classes=self.num_classes)
