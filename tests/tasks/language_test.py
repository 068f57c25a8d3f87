"""Next-token loss, its weights and its scores, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.tasks import NextToken

ROWS, LENGTH, VOCABULARY = 4, 5, 7
HALVES = slice(0, 2), slice(2, 4)


def sample(seed=0):
    """Logits and a batch, a third of whose targets do not count."""
    rng = np.random.default_rng(seed)
    shape = ROWS, LENGTH
    batch = {
        "tokens": rng.integers(0, VOCABULARY, shape),
        "targets": rng.integers(0, VOCABULARY, shape),
        "positions": np.tile(np.arange(LENGTH), (ROWS, 1)),
        "mask": np.ones(shape, bool),
        "weights": (rng.random(shape) < 0.67).astype(np.float32),
    }
    logits = 3 * rng.standard_normal((*shape, VOCABULARY))
    return logits.astype(np.float32), batch


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nats(logits, batch):
    """Of every token, [B, L], in float64."""
    log_p = log_softmax(logits)
    return -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]


def slopes(logits, batch, z_loss_weight):
    """Gradient of the loss with respect to the logits, in float64."""
    w = batch["weights"].astype(np.float64)
    w = (w / w.sum())[..., None]
    p = np.exp(log_softmax(logits))
    total = np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    one_hot = np.eye(VOCABULARY)[batch["targets"]]
    return w * (p - one_hot) + z_loss_weight * w * 2 * total * p


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_loss_and_gradient(z_loss_weight):
    logits, batch = sample()
    objective = NextToken(z_loss_weight=z_loss_weight)

    @jax.jit
    def both(logits, batch):
        _, targets = objective.examples(batch, jax.random.key(0))

        def loss(logits):
            return objective.loss(logits, targets)

        return jax.value_and_grad(loss, has_aux=True)(logits)

    (loss, scalars), gradient = both(logits, batch)
    counted = batch["weights"] > 0
    nll = nats(logits, batch)[counted].mean()
    total = np.log(np.exp(logits.astype(np.float64)).sum(-1))[counted]
    expected = nll + z_loss_weight * np.square(total).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    hit = (logits.argmax(-1) == batch["targets"])[counted].mean()
    np.testing.assert_allclose(scalars["accuracy"], hit, rtol=1e-6)
    assert ("z_loss" in scalars) == (z_loss_weight > 0)
    wanted = slopes(logits, batch, z_loss_weight)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_parts_of_a_batch_average_to_its_loss():
    """However many of their tokens count."""
    logits, batch = sample()
    batch["weights"][0] = 0
    objective = NextToken()
    _, targets = objective.examples(jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    halves = [jax.tree.map(lambda t, rows=r: t[rows], targets) for r in HALVES]
    parts = [objective.loss(logits[r], h) for r, h in zip(HALVES, halves, strict=True)]
    whole = objective.loss(jnp.asarray(logits), targets)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    chex.assert_trees_all_close(mean, whole, rtol=1e-6)


def test_sums():
    logits, batch = sample()
    spoiled = np.where(batch["weights"][..., None] > 0, logits, np.nan)
    sums = NextToken().sums(jnp.asarray(spoiled), jax.tree.map(jnp.asarray, batch))
    counted = batch["weights"] > 0
    hit = (logits.argmax(-1) == batch["targets"]) & counted
    expected = {
        "count": counted.sum(),
        "hits": hit.sum(),
        "nll": nats(logits, batch)[counted].sum(),
    }
    assert set(sums) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("packed", "padded"), [(True, False), (False, True)])
def test_what_the_model_is_told(packed, padded):
    _, batch = sample()
    tokens, known = NextToken(packed=packed, padded=padded).inputs(batch)
    assert tokens is batch["tokens"]
    assert set(known) == {name for name, told in told_of(packed, padded) if told}
    assert all(known[name] is batch[name] for name in known)


def told_of(packed, padded):
    return ("positions", packed), ("mask", padded)
