"""Loss and scores of sequences from sequences, against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import transduction
from normjax.core.errors import UserError
from normjax.tasks import SourceToTarget, Transduction

ROWS, LENGTH, VOCABULARY = 5, 6, 7
LENGTHS = np.array([6, 3, 1, 4, 0])
"""Of targets; the last row is past the last example."""


def sample():
    """Logits, large at the targets of all rows but the first two, and a batch."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    batch = {
        "source": rng.integers(0, VOCABULARY, (ROWS, LENGTH)),
        "source_mask": np.ones((ROWS, LENGTH), bool),
        "tokens": rng.integers(0, VOCABULARY, (ROWS, LENGTH)),
        "targets": np.where(mask, rng.integers(0, VOCABULARY, mask.shape), 3),
        "mask": mask,
        "weights": mask.astype(np.float32),
    }
    logits = rng.standard_normal((ROWS, LENGTH, VOCABULARY))
    right = np.eye(VOCABULARY)[batch["targets"]] * mask[..., None]
    right[0, 1] = -right[0, 1]
    right[1, 2] = -right[1, 2]
    return (logits + 9 * right).astype(np.float32), batch


def nats(logits, batch):
    """Of every token that counts, in float64."""
    logits = logits.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = np.take_along_axis(p, batch["targets"][..., None], -1)[..., 0]
    return -np.log(own[batch["mask"]])


def test_what_the_model_is_told():
    _, batch = sample()
    tokens, known = SourceToTarget().inputs(batch)
    assert tokens is batch["tokens"]
    assert set(known) == {"source", "source_mask", "mask"}
    assert all(known[name] is batch[name] for name in known)


def test_loss_and_gradient():
    """The mean over the tokens that count."""
    logits, batch = sample()
    objective = SourceToTarget()
    _, targets = objective.examples(jax.tree.map(jnp.asarray, batch), jax.random.key(0))

    def loss(logits):
        return objective.loss(logits, targets)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, scalars), gradient = grad(jnp.asarray(logits))
    np.testing.assert_allclose(value, nats(logits, batch).mean(), rtol=1e-6)
    np.testing.assert_allclose(scalars["accuracy"], 12 / 14, rtol=1e-6)
    p = np.exp(logits.astype(np.float64))
    p = p / p.sum(-1, keepdims=True) - np.eye(VOCABULARY)[batch["targets"]]
    expected = p * batch["mask"][..., None] / 14
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_scores():
    """Two of four sequences are right, and 12 of 14 tokens."""
    logits, batch = sample()
    spoiled = np.where(batch["mask"][..., None], logits, np.nan)
    objective = SourceToTarget()
    sums = objective.sums(jnp.asarray(spoiled), jax.tree.map(jnp.asarray, batch))
    _, counted = objective.answers(logits, batch)
    np.testing.assert_array_equal(counted, batch["mask"])
    np.testing.assert_array_equal(objective.rows(batch), batch["mask"].any(-1))
    counts = {name: float(sums[name]) for name in ("count", "hits", "rows", "exact")}
    assert counts == {"count": 14, "hits": 12, "rows": 4, "exact": 2}
    scores = task().summarize(sums, "validation")
    assert set(scores) == {"nll", "accuracy", "exact"}
    np.testing.assert_allclose(scores["nll"], nats(logits, batch).mean(), rtol=1e-6)
    np.testing.assert_allclose(scores["accuracy"], 12 / 14, rtol=1e-6)
    assert scores["exact"] == 0.5


def test_rank():
    assert Transduction.rank({"nll": 0.1}) > Transduction.rank({"nll": 0.2})


def task(**fields):
    config: Any = transduction.get_config()
    config.data.update(fields)
    return Transduction(config)


def test_rows_are_those_of_the_data():
    made = task(length=7)
    batch = next(made.train_batches(batch_size=3, seed=0))
    rows = made.row()
    assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in rows.items()
    }
    assert (made.units_per_row, made.model_arguments()) == (8, {"vocab_size": 53})
    assert {column.score for column in made.columns} == {"exact", "accuracy", "nll"}
    assert made.describe() == "reversed_case, 1,000,000 pairs of up to 7 letters"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "reversed"}, "unknown set of pairs 'reversed'"),
        ({"eval_split": "dev"}, "split of 'reversed_case': 'dev'"),
        ({"length": 2}, "data.length=2 must be at least 4"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(UserError) as caught:
        task(**fields)
    assert message in str(caught.value)
