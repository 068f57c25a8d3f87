"""Graphs of communities, and which node belongs to which: the task of CLUSTER."""

import numpy as np

from normjax.core.errors import UserError
from normjax.core.laplacian import laplacian_positions
from normjax.data.made import Made, check_made, random_words
from normjax.data.rows import Batch

WITHIN, BETWEEN = 0.55, 0.25
"""Probabilities of an edge, as published."""
_STREAM = 4  # of random words, beside those of the other sets
_EXAMPLES = {"train": 1_000_000, "validation": 1_000, "test": 1_000}


class Communities(Made):
    """Random graphs of K communities (CLUSTER; Dwivedi et al., 2020).

    A community has `smallest` to `largest` nodes. Two nodes of one community have an
    edge with probability 0.55, two of different ones with 0.25. One node of every
    community says which it is of, 1 to K; all others say 0. Of which community is every
    node? Graph i of a split is a pure function of (split, i): nothing is stored.

    Rows are batches of {"nodes": int32 [B, N], "adjacency": bool [B, N, N],
    "positions": float32 [B, N, P], "labels": int32 [B, N], "mask": bool [B, N]} with
    N = K `largest`; nodes stand in random order, behind the last one all is 0.
    Positions are those of `mixers.laplacian_positions`.

    Attributes:
      name: of the set.  kind: what it is made of.  split: its split.
      num_examples: graphs of the split.
      communities: K.  smallest, largest: nodes of one.  positions: P.

    Example:
      >>> from normjax import data
      >>> sizes = {"communities": 2, "smallest": 3, "largest": 4, "positions": 2}
      >>> source = data.open_graphs("communities", "test", **sizes)
      >>> isinstance(source, data.Communities)
      True
      >>> batch = source.load(range(3), None)
      >>> batch["nodes"].shape, batch["positions"].shape
      ((3, 8), (3, 8, 2))
      >>> [sorted(row[row > 0]) == [1, 2] for row in batch["nodes"]]
      [True, True, True]
    """

    name, kind = "communities", "graphs"

    def __init__(
        self, split: str, communities: int, smallest: int, largest: int, positions: int
    ):
        super().__init__(split, _EXAMPLES[split])
        self.communities, self.positions = communities, positions
        self.smallest, self.largest = smallest, largest

    def blank(self, count: int) -> Batch:
        """`count` graphs without nodes."""
        n = self.communities * self.largest
        return {
            "nodes": np.zeros((count, n), np.int32),
            "adjacency": np.zeros((count, n, n), bool),
            "positions": np.zeros((count, n, self.positions), np.float32),
            "labels": np.zeros((count, n), np.int32),
            "mask": np.zeros((count, n), bool),
        }

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`, int64 [B]; nothing about them is random."""
        del u
        batch = self.blank(len(indices))
        for row, index in enumerate(indices):
            labels, nodes, adjacency = self._graph(int(index))
            n = len(labels)
            batch["labels"][row, :n], batch["nodes"][row, :n] = labels, nodes
            batch["adjacency"][row, :n, :n] = adjacency
            batch["mask"][row, :n] = True
            batch["positions"][row, :n] = laplacian_positions(adjacency, self.positions)
        return batch

    def _graph(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Communities and types [n], and edges [n, n] of graph `index`."""
        most = self.communities * self.largest
        words = random_words(
            self.split, _STREAM, index, self.communities + most + most**2
        )
        sizes, words = words[: self.communities], words[self.communities :]
        sizes = self.smallest + sizes % np.uint64(self.largest - self.smallest + 1)
        labels = np.repeat(np.arange(self.communities), sizes.astype(int))
        order, n = words[:most], len(labels)
        labels = labels[np.argsort(order[:n], kind="stable")]
        # The first node of each in this order, which is random.
        nodes = np.zeros(n, int)
        known, first = np.unique(labels, return_index=True)
        nodes[first] = known + 1
        same = labels[:, None] == labels
        bound = (np.where(same, WITHIN, BETWEEN) * 2.0**64).astype(np.uint64)
        upper = np.triu(words[most : most + n * n].reshape(n, n) < bound, 1)
        return labels, nodes, upper | upper.T


def open_graphs(
    name: str,
    split: str,
    *,
    communities: int = 6,
    smallest: int = 5,
    largest: int = 35,
    positions: int = 10,
) -> Communities:
    """Open one split of a set of graphs; by default the sizes of CLUSTER.

    Args:
      name: "communities".  split: "train", "validation" or "test".
      communities: of a graph, at least 2.
      smallest, largest: nodes of a community.
      positions: of a node, fewer than the smallest graph has nodes.

    Raises:
      UserError: unknown name or split, numbers that make no graph.

    Example:
      >>> from normjax import data
      >>> source = data.open_graphs("communities", "validation")
      >>> source.communities, source.largest, len(source)
      (6, 35, 1000)
    """
    check_made("set of graphs", name, split, Communities)
    if communities < 2:
        raise UserError(f"data.communities={communities} must be at least 2")
    if not 1 <= smallest <= largest:
        raise UserError(
            f"data.smallest={smallest} must be at least 1 and at most "
            f"data.largest={largest}"
        )
    if not 0 <= positions < communities * smallest:
        raise UserError(
            f"data.positions={positions}: a graph may have "
            f"{communities * smallest} nodes, and must have more of them than positions"
        )
    return Communities(split, communities, smallest, largest, positions)
