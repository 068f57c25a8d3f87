"""Loss and scores of the nodes of graphs, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.tasks import NodeClass, NodeClassification


def test_loss_and_scores():
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.array([6, 2, 0])[:, None]
    batch = {
        "nodes": rng.integers(0, 4, (3, 6)),
        "adjacency": np.ones((3, 6, 6), bool),
        "positions": rng.normal(size=(3, 6, 2)),
        "labels": rng.integers(0, 3, (3, 6)),
        "mask": mask,
    }
    logits = rng.normal(size=(3, 6, 3)).astype("float32")
    logits[0] += 3 * np.eye(3)[batch["labels"][0]]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = -np.log(np.take_along_axis(p, batch["labels"][..., None], -1)[..., 0][mask])
    right = (logits.argmax(-1) == batch["labels"])[mask]
    assert 0 < right.sum() < 8

    objective, arrays = NodeClass(), jax.tree.map(jnp.asarray, batch)
    (nodes, known), targets = objective.examples(arrays, jax.random.key(0))
    assert nodes is arrays["nodes"] and set(known) == {"adjacency", "positions", "mask"}
    slope = jax.grad(lambda x: objective.loss(x, targets)[0])
    loss, scalars = objective.loss(jnp.asarray(logits), targets)
    np.testing.assert_allclose(loss, own.mean(), rtol=1e-6)
    np.testing.assert_allclose(scalars["accuracy"], right.mean(), rtol=1e-6)
    expected = (p - np.eye(3)[batch["labels"]]) * mask[..., None] / 8
    np.testing.assert_allclose(slope(jnp.asarray(logits)), expected, atol=1e-7)

    spoiled = np.where(mask[..., None], logits, np.nan)
    sums = objective.sums(jnp.asarray(spoiled), arrays)
    assert (float(sums["count"]), float(sums["hits"])) == (8, right.sum())
    scores = NodeClassification.summarize(None, sums, "test")
    np.testing.assert_allclose(scores["nll"], own.mean(), rtol=1e-6)
    assert scores["accuracy"] == right.mean()
    np.testing.assert_array_equal(objective.rows(arrays), [True, True, False])
    assert NodeClassification.rank({"nll": 0.1}) > NodeClassification.rank({"nll": 0.2})
