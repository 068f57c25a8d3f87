"""Targets of distillation and adversarial examples, number by number."""

import jax.numpy as jnp
import numpy as np

from normjax import tasks

RNG = np.random.default_rng(0)


def test_targets_of_the_last_epoch():
    predictions = RNG.dirichlet(np.ones(4), 3).astype(np.float32)
    made = tasks.progressive_targets(
        jnp.array([1, 3, 0]), jnp.asarray(predictions), 0.3
    )
    for row, p, label in zip(made, predictions, (1, 3, 0), strict=True):
        expected = [0.3 * q + 0.7 * (k == label) for k, q in enumerate(p)]
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    weights = [tasks.progressive_weight(e, 5, 0.5) for e in range(5)]
    np.testing.assert_allclose(weights, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_stored_targets():
    logits = RNG.normal(size=(3, 6)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values, classes = tasks.largest_probabilities(jnp.asarray(logits), 2)
    targets = np.asarray(tasks.dense_targets(values, classes, 6))
    for row, found in zip(p, targets, strict=True):
        first = np.argsort(-row)[:2]
        np.testing.assert_allclose(found[first], row[first], rtol=1e-3)
        rest = np.delete(found, first)
        np.testing.assert_allclose(rest, (1 - row[first].sum()) / 4, atol=1e-3)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_records_are_bytes_in_one_order():
    seeds, classes = np.array([5, 2**31 - 1]), np.array([[1, 300], [32767, 0]])
    values = np.array([[0.5, 0.25], [1.0, 0.0]])
    records = tasks.pack_records(seeds, classes, values)
    expected = b"".join(
        int(s).to_bytes(4, "little")
        + b"".join(int(k).to_bytes(2, "little") for k in row)
        + np.float16(v).tobytes()
        for s, row, v in zip(seeds, classes, values, strict=True)
    )
    assert records.tobytes() == expected and records.shape == (2, 12)
    for back, given in zip(
        tasks.unpack_records(records), (seeds, classes, values), strict=True
    ):
        np.testing.assert_array_equal(back, given)


def test_adversarial_examples_stay_near_and_in_range():
    x, start = RNG.uniform(-1, 1, (2, 40)).astype(np.float32)
    gradient = RNG.normal(size=40)
    for targeted in (False, True):
        made = tasks.adversarial_examples(
            jnp.asarray(x),
            jnp.asarray(start),
            jnp.asarray(gradient),
            epsilon=0.3,
            step=0.2,
            targeted=targeted,
        )
        up = np.sign(gradient) * (-1 if targeted else 1)
        expected = [
            max(max(a - 0.3, -1), min(min(a + 0.3, 1), b + 0.2 * s))
            for a, b, s in zip(x, start, up, strict=True)
        ]
        np.testing.assert_allclose(made, expected, rtol=1e-5)
