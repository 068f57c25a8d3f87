"""Strings from frames, against NumPy over all paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from normjax.tasks import LineRecognition, Transcription, best_path, edit_distance


def collapsed(path):
    return [int(t) for t, _ in itertools.groupby(path) if t]


def distance(a, b):
    """By the recursion of the definition."""

    @functools.cache
    def of(i, j):
        if not i or not j:
            return i + j
        change = of(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(change, of(i - 1, j) + 1, of(i, j - 1) + 1)

    return of(len(a), len(b))


def strings(rng, rows, length, tokens=3):
    counts = rng.integers(0, length + 1, rows)
    drawn = rng.integers(1, tokens + 1, (rows, length))
    return np.where(np.arange(length) < counts[:, None], drawn, 0)


def test_distances():
    rng = np.random.default_rng(0)
    found, wanted = strings(rng, 200, 6), strings(rng, 200, 4)
    expected = [
        distance([t for t in a if t], [t for t in b if t])
        for a, b in zip(found, wanted, strict=True)
    ]
    np.testing.assert_array_equal(jax.jit(edit_distance)(found, wanted), expected)
    assert {0, 6} <= set(expected)


def test_best_paths():
    logits = np.random.default_rng(0).normal(size=(50, 7, 3))
    for row, found in zip(logits, best_path(jnp.asarray(logits)), strict=True):
        wanted = collapsed(row.argmax(-1))
        assert list(found) == wanted + [0] * (7 - len(wanted))


def nats(logits, tokens):
    """-log of the sum over all paths, mean over the lines."""
    total = 0.0
    for frames, string in zip(logits, tokens, strict=True):
        p = np.exp(frames) / np.exp(frames).sum(-1, keepdims=True)
        paths = itertools.product(range(p.shape[1]), repeat=len(p))
        wanted = [int(t) for t in string if t]
        total -= np.log(
            sum(
                np.prod(p[np.arange(len(p)), path])
                for path in paths
                if collapsed(path) == wanted
            )
        )
    return total / len(logits)


def test_loss_gradient_and_scores(x64):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 3))
    tokens = np.array([[1, 0], [1, 1], [2, 1]])
    logits[1] += 9 * np.eye(3)[[1, 0, 1, 1]]
    grad = jax.jit(jax.value_and_grad(Transcription().loss, has_aux=True))
    (value, scalars), slope = grad(logits, tokens)
    np.testing.assert_allclose(value, nats(logits, tokens), rtol=1e-9)
    right = [
        collapsed(row.argmax(-1)) == [t for t in string if t]
        for row, string in zip(logits, tokens, strict=True)
    ]
    assert right[1]
    np.testing.assert_allclose(scalars["accuracy"], np.mean(right), rtol=1e-6)
    for place in ((0, 1, 0), (1, 2, 1), (2, 3, 2)):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        expected = (nats(logits + step, tokens) - nats(logits - step, tokens)) / 2e-5
        np.testing.assert_allclose(slope[place], expected, atol=1e-8)

    # A row behind the last line counts nowhere, whatever is in it.
    spoiled = np.concatenate([logits, np.full((1, 4, 3), np.nan)])
    batch = {"tokens": np.concatenate([tokens, [[0, 0]]])}
    sums = {k: float(v) for k, v in Transcription().sums(spoiled, batch).items()}
    edits = sum(
        distance(collapsed(row.argmax(-1)), [t for t in string if t])
        for row, string in zip(logits, tokens, strict=True)
    )
    np.testing.assert_allclose(sums.pop("nll"), 3 * nats(logits, tokens), rtol=1e-6)
    assert sums == {"rows": 3, "exact": sum(right), "characters": 5, "edits": edits}
    scores = LineRecognition.summarize(None, {**sums, "nll": 6.0}, "test")
    assert scores["nll"] == 2 and scores["character_error_rate"] == edits / 5
    assert LineRecognition.rank({"character_error_rate": 0.1}) > LineRecognition.rank(
        {"character_error_rate": 0.2}
    )
