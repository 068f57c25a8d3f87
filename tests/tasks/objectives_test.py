"""Objectives whose outputs are no logits a row: pairs, dense maps, ragged targets.

Each goes through the update and the evaluation that every run goes through.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.tasks.scores import evaluate, make_eval_step
from normjax.train.state import state_of
from normjax.train.step import Recipe, make_train_step

ROWS, REAL, RATE = 6, 4, 0.5


class TwoTowers(nn.Module):
    """Embeddings of both halves of a pair."""

    @nn.compact
    def __call__(self, images, train=False, *, texts):
        return nn.Dense(5, name="image")(images), nn.Dense(5, name="text")(texts)


class Contrast(NamedTuple):
    """Which text belongs to an image: every row's logits are over the batch."""

    def examples(self, batch, key):
        return self.inputs(batch), jnp.arange(len(batch["image"]))

    def loss(self, outputs, targets):
        logits = outputs[0] @ outputs[1].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses), {}

    def inputs(self, batch):
        return batch["image"], {"texts": batch["text"]}

    def rows(self, batch):
        return batch["mask"]

    def answers(self, outputs, batch):
        logits = jnp.where(batch["mask"], outputs[0] @ outputs[1].T, -jnp.inf)
        return logits, batch["mask"]

    def sums(self, outputs, batch):
        logits, counted = self.answers(outputs, batch)
        hit = jnp.argmax(logits, -1) == jnp.arange(len(logits))
        return {"hits": jnp.sum(hit & counted), "count": jnp.sum(counted)}


class OfPixels(nn.Module):
    """Logits of every pixel."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3, name="head")(images)


class Segmentation(NamedTuple):
    """The class of every pixel; -1 is none."""

    def examples(self, batch, key):
        return self.inputs(batch), batch["map"]

    def loss(self, logits, targets):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(jnp.where(targets < 0, 0, losses)), {}

    def inputs(self, batch):
        return batch["image"], {}

    def rows(self, batch):
        return batch["mask"]

    def answers(self, logits, batch):
        return logits, (batch["map"] >= 0) & batch["mask"][:, None, None]

    def sums(self, logits, batch):
        """Pixels of both, and of either, by class: for the mean overlap."""
        logits, counted = self.answers(logits, batch)
        said = jax.nn.one_hot(jnp.argmax(logits, -1), 3) * counted[..., None]
        true = jax.nn.one_hot(batch["map"], 3) * counted[..., None]
        both = jnp.sum(said * true, (0, 1, 2))
        return {"both": both, "either": jnp.sum(said + true, (0, 1, 2)) - both}


class OfFrames(nn.Module):
    """Logits of every frame; 0 is the blank."""

    @nn.compact
    def __call__(self, frames, train=False):
        return nn.Dense(4, name="head")(frames)


class Recognition(NamedTuple):
    """Sequences of tokens in longer sequences of frames, both ragged (CTC)."""

    def examples(self, batch, key):
        return self.inputs(batch), {k: batch[k] for k in ("ends", "tokens")}

    def loss(self, logits, targets):
        beyond = jnp.arange(logits.shape[1])[None] >= targets["ends"][:, None]
        padding = (targets["tokens"] == 0).astype(jnp.float32)
        frames = beyond.astype(jnp.float32)
        return jnp.mean(optax.ctc_loss(logits, frames, targets["tokens"], padding)), {}

    def inputs(self, batch):
        return batch["frames"], {}

    def rows(self, batch):
        return batch["ends"] > 0

    def answers(self, logits, batch):
        return logits, jnp.arange(logits.shape[1])[None] < batch["ends"][:, None]

    def sums(self, logits, batch):
        """Sequences that are right as a whole, decoded by their best path."""
        logits, counted = self.answers(logits, batch)
        best = jnp.where(counted, jnp.argmax(logits, -1), 0)
        before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
        kept = (best != 0) & (best != before)
        place = jnp.where(kept, jnp.cumsum(kept, 1) - 1, best.shape[1])
        decoded = (
            jnp.zeros_like(best)
            .at[jnp.arange(len(best))[:, None], place]
            .set(best, mode="drop")
        )
        tokens = batch["tokens"]
        wanted = jnp.pad(tokens, ((0, 0), (0, best.shape[1] - tokens.shape[1])))
        exact = jnp.all(decoded == wanted, -1) & self.rows(batch)
        return {"exact": jnp.sum(exact), "count": jnp.sum(self.rows(batch))}


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def dense(params, x):
    return x @ np.float64(params["kernel"]) + np.float64(params["bias"])


def contrast_loss(params, batch):
    a, b = (dense(params[name], batch[name]) for name in ("image", "text"))
    return -np.log(np.diag(softmax(a @ b.T))).mean()


def contrast_scores(params, batches):
    hits, count = 0, 0
    for batch in batches:
        real = {k: v[batch["mask"]] for k, v in batch.items()}
        a, b = (
            dense(params["image"], real["image"]),
            dense(params["text"], real["text"]),
        )
        hits += ((a @ b.T).argmax(-1) == np.arange(len(a))).sum()
        count += len(a)
    return {"hits": hits, "count": count}


def map_loss(params, batch):
    p, known = softmax(dense(params["head"], batch["image"])), batch["map"] >= 0
    own = np.take_along_axis(p, np.maximum(batch["map"], 0)[..., None], -1)[..., 0]
    return -np.log(own)[known].sum() / known.size


def map_scores(params, batches):
    both, either = np.zeros(3), np.zeros(3)
    for batch in batches:
        said = dense(params["head"], batch["image"]).argmax(-1)
        known = (batch["map"] >= 0) & batch["mask"][:, None, None]
        for k in range(3):
            a, b = (said == k) & known, (batch["map"] == k) & known
            both[k] += (a & b).sum()
            either[k] += (a | b).sum()
    return {"both": both, "either": either}


def collapsed(path):
    kept = [t for i, t in enumerate(path) if i == 0 or t != path[i - 1]]
    return [int(t) for t in kept if t]


def paths(length):
    """Every path of so many frames over four symbols."""
    return np.stack(np.meshgrid(*[range(4)] * length, indexing="ij"), -1).reshape(
        -1, length
    )


def sequence_loss(params, batch):
    """By the sum over all paths."""
    total = 0.0
    for frames, end, tokens in zip(
        batch["frames"], batch["ends"], batch["tokens"], strict=True
    ):
        p = softmax(dense(params["head"], frames[:end]))
        wanted = [int(t) for t in tokens if t]
        ways = [path for path in paths(end) if collapsed(path) == wanted]
        total -= np.log(sum(np.prod(p[np.arange(end), path]) for path in ways))
    return total / len(batch["ends"])


def sequence_scores(params, batches):
    exact, count = 0, 0
    for batch in batches:
        rows = zip(batch["frames"], batch["ends"], batch["tokens"], strict=True)
        for frames, end, tokens in rows:
            if end:
                path = dense(params["head"], frames[:end]).argmax(-1)
                exact += collapsed(path) == [int(t) for t in tokens if t]
                count += 1
    return {"exact": exact, "count": count}


def pairs(rng, real):
    image = rng.normal(size=(ROWS, 4)).astype("float32")
    text = image[:, :3] + 0.3 * rng.normal(size=(ROWS, 3)).astype("float32")
    return {"image": image, "text": text, "mask": np.arange(ROWS) < real}


def maps(rng, real):
    image = rng.normal(size=(ROWS, 2, 3, 4)).astype("float32")
    given = rng.integers(-1, 3, (ROWS, 2, 3))
    return {"image": image, "map": given, "mask": np.arange(ROWS) < real}


def sequences(rng, real):
    ends, counts = rng.integers(3, 6, ROWS), rng.integers(1, 3, ROWS)
    tokens = np.where(np.arange(2) < counts[:, None], rng.integers(1, 4, (ROWS, 2)), 0)
    tokens[:, 1] *= tokens[:, 1] != tokens[:, 0]
    frames = rng.normal(size=(ROWS, 5, 4)).astype("float32")
    for row, wanted in enumerate(tokens):  # so that some of them are right
        frames[row, : (wanted > 0).sum(), :] += 3 * np.eye(4)[wanted[wanted > 0]]
    ends[real:] = 0
    return {"frames": frames, "ends": ends, "tokens": tokens}


KINDS = {
    "pairs": (TwoTowers(), Contrast(), pairs, contrast_loss, contrast_scores),
    "maps": (OfPixels(), Segmentation(), maps, map_loss, map_scores),
    "ragged": (OfFrames(), Recognition(), sequences, sequence_loss, sequence_scores),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_and_the_scores(kind):
    model, objective, make, oracle_loss, oracle_scores = KINDS[kind]
    rng = np.random.default_rng(0)
    batch = make(rng, ROWS)
    x, known = objective.inputs(batch)
    variables = model.init(jax.random.key(0), x, **known)
    if kind == "ragged":
        variables["params"]["head"]["kernel"] += jnp.eye(4)
    optimizer = optax.sgd(RATE)
    state = state_of(variables, optimizer, jax.random.key(1), use_ema=False)
    schedule = optax.constant_schedule(RATE)
    step = make_train_step(model, objective, optimizer, schedule, Recipe())
    new, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], oracle_loss(state.params, batch), 1e-5)
    # The update goes down the slope of the oracle.
    leaves, tree = jax.tree.flatten(jax.tree.map(np.float64, state.params))
    moved = jax.tree.leaves(jax.tree.map(np.float64, new.params))
    for i, (before, after) in enumerate(zip(leaves, moved, strict=True)):
        direction = rng.normal(size=before.shape)

        def loss(by, i=i, direction=direction):
            at = [*leaves[:i], leaves[i] + by * direction, *leaves[i + 1 :]]
            return oracle_loss(jax.tree.unflatten(tree, at), batch)

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        actual = np.sum((before - after) / RATE * direction)
        np.testing.assert_allclose(actual, slope, rtol=1e-3, atol=1e-5)

    batches = [make(rng, ROWS), make(rng, REAL)]
    eval_step = jax.jit(make_eval_step(model.apply, objective))
    sums = evaluate(eval_step, {"params": new.params}, batches)
    expected = oracle_scores(new.params, batches)
    assert set(sums) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(sums[name], value, err_msg=name)
        assert np.sum(value) > 0
    last = jax.tree.map(jnp.asarray, batches[-1])
    x, known = objective.inputs(last)
    outputs = model.apply({"params": new.params}, x, **known)
    logits, counted = objective.answers(outputs, last)
    assert counted.shape == logits.shape[:-1]
    np.testing.assert_array_equal(objective.rows(last), np.arange(ROWS) < REAL)
    assert not np.asarray(counted)[REAL:].any()
