"""Graphs of communities: edges, what is told of them, positions."""

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import eval_batches, open_graphs

SIZES = {"communities": 3, "smallest": 2, "largest": 9, "positions": 4}
COUNT = 200


@pytest.fixture(scope="module")
def batch():
    source = open_graphs("communities", "train", **SIZES)
    return source.load(np.arange(COUNT), np.empty((COUNT, 0)))


def test_communities_and_edges(batch):
    sizes, edges, pairs = [], np.zeros(2), np.zeros(2)
    for row in range(COUNT):
        n = int(batch["mask"][row].sum())
        assert batch["mask"][row, :n].all()
        labels, adjacency = batch["labels"][row, :n], batch["adjacency"][row]
        sizes += list(np.bincount(labels, minlength=3))
        assert (adjacency == adjacency.T).all() and not np.diag(adjacency).any()
        assert not adjacency[n:].any()
        told = batch["nodes"][row, :n]
        assert sorted(told[told > 0]) == [1, 2, 3]
        assert (labels[told > 0] + 1 == told[told > 0]).all()
        for i in range(n):
            for j in range(i):
                same = int(labels[i] == labels[j])
                edges[same] += adjacency[i, j]
                pairs[same] += 1
    assert set(sizes) == set(range(2, 10))
    share = edges / pairs
    np.testing.assert_allclose(share, (0.25, 0.55), atol=5 * 0.5 / pairs.min() ** 0.5)


def test_the_order_of_nodes_tells_nothing(batch):
    first = batch["labels"][:, 0]
    assert (abs(np.bincount(first) - COUNT / 3) < 5 * np.sqrt(COUNT / 3)).all()


def test_positions_are_eigenvectors(batch):
    for row in range(20):
        n = int(batch["mask"][row].sum())
        adjacency = batch["adjacency"][row, :n, :n].astype(float)
        root = 1 / np.sqrt(np.maximum(adjacency.sum(1), 1))
        laplacian = np.eye(n) - root[:, None] * adjacency * root
        positions = batch["positions"][row, :n].astype(float)
        values = (positions * (laplacian @ positions)).sum(0)
        np.testing.assert_allclose(laplacian @ positions, positions * values, atol=1e-6)
        np.testing.assert_allclose(
            values, np.linalg.eigvalsh(laplacian)[1:5], atol=1e-6
        )
        assert not batch["positions"][row, n:].any()


def test_a_split_is_a_set_of_its_own():
    graphs = [open_graphs("communities", split, **SIZES) for split in ("train", "test")]
    made = [source.load(np.arange(4), None)["adjacency"] for source in graphs]
    assert (made[0] != made[1]).any((1, 2)).all()
    *_, last = eval_batches(graphs[1], batch_size=300)
    assert (last["mask"].any(1) == (np.arange(300) < 100)).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("community", {}, "unknown set of graphs 'community'; did you mean"),
        ("communities", {"communities": 1}, "data.communities=1 must be at least 2"),
        ("communities", {"smallest": 10}, "data.smallest=10 must be at least 1 and"),
        ("communities", {"positions": 6}, "data.positions=6: a graph may have 6 nodes"),
    ],
)
def test_errors(name, changes, message):
    with pytest.raises(UserError) as caught:
        open_graphs(name, "train", **{**SIZES, **changes})
    assert message in str(caught.value) and "\n" not in str(caught.value)
