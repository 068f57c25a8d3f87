"""Which weights go, by loops."""

import numpy as np
import pytest

from normjax import prune
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)


def test_thresholds_and_patterns():
    kernel = RNG.normal(size=(8, 5))
    scores = np.abs(kernel)
    gone = prune.smallest(scores, 0.5)
    assert gone.sum() == 21 and scores[gone].max() < scores[~gone].min()
    pattern = prune.smallest_in_groups(scores, 2, 4)
    for column in range(5):
        for start in (0, 4):
            part = scores[start : start + 4, column]
            expected = part < np.sort(part)[2]
            assert (pattern[start : start + 4, column] == expected).all()
    with pytest.raises(UserError, match="2 of every 3 do not fit 8 inputs"):
        prune.smallest_in_groups(scores, 2, 3)
    with pytest.raises(UserError, match="sparsity"):
        prune.smallest(scores, 1.0)


def test_scores_by_inputs():
    batches = RNG.normal(size=(3, 2, 7, 4))
    squares = prune.input_squares(batches)
    each = [np.square(x).sum(0) for batch in batches for x in batch]
    np.testing.assert_allclose(squares, np.mean(each, 0))
    kernel = RNG.normal(size=(4, 3))
    scores = prune.wanda_scores(kernel, squares)
    assert scores[2, 1] == pytest.approx(abs(kernel[2, 1]) * squares[2] ** 0.5)


def test_a_round_of_activation():
    shapes = {"a": (6, 5), "b": (4,)}
    start, trained = (
        {k: RNG.normal(size=s) for k, s in shapes.items()} for _ in range(2)
    )
    masks = {k: (RNG.random(s) < 0.9) * 1.0 for k, s in shapes.items()}
    every = [
        (abs(trained[k][i]), abs(trained[k][i] - start[k][i]), trained[k][i] < 0, k, i)
        for k, s in shapes.items()
        for i in np.ndindex(s)
        if masks[k][i]
    ]
    pruned = prune.globally_pruned(trained, masks, 25.0)
    threshold = np.percentile([row[0] for row in every], 25.0)
    kept = [row for row in every if row[0] >= threshold]
    assert {(k, i) for *_, k, i in kept} == left(pruned)
    count = prune.activation_count(masks, 10.0)
    assert count == len(every) // 10
    found = prune.activated(trained, start, pruned, count)
    gone = sorted((row for row in kept if row[2]), key=lambda row: row[1])[: count + 1]
    assert left(pruned) - left(found) == {(k, i) for *_, k, i in gone}
    none = {k: np.abs(w) for k, w in trained.items()}
    assert left(prune.activated(none, start, pruned, count)) == left(pruned)


def left(masks):
    return {(k, i) for k, m in masks.items() for i in np.ndindex(m.shape) if m[i]}
