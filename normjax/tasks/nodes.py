"""Classification of the nodes of graphs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax import data
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent, row_of
from normjax.tasks.language import NextToken

_GIVEN = ("adjacency", "positions", "mask")


class NodeClass(NamedTuple):
    """Cross entropy of the class of every node, mean over the nodes.

    Batches are those of `data.Communities`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import NodeClass
      >>> shape = {"adjacency": (1, 3, 3), "positions": (1, 3, 2), "mask": (1, 3)}
      >>> batch = {name: jnp.ones(s) for name, s in shape.items()}
      >>> batch |= {name: jnp.zeros((1, 3), int) for name in ("nodes", "labels")}
      >>> (nodes, known), targets = NodeClass().examples(batch, jax.random.key(0))
      >>> loss, _ = NodeClass().loss(jnp.zeros((1, 3, 4)), targets)
      >>> print(sorted(known), loss.round(3))  # log(4)
      ['adjacency', 'mask', 'positions'] 1.386
    """

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Graphs and {"tokens", "weights"} [B, N], weights with the mean 1."""
        _, targets = NextToken().examples(_as_tokens(batch), key)
        return self.inputs(batch), targets

    def loss(self, logits: jax.Array, targets: Any):
        """Nats a node; "accuracy" of the nodes."""
        return NextToken().loss(logits, targets)

    def inputs(self, batch: Batch) -> Inputs:
        """Types of nodes int [B, N], edges, positions and which are nodes."""
        return batch["nodes"], {name: batch[name] for name in _GIVEN}

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]: graphs that have nodes."""
        return batch["mask"].any(-1)

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, N, K] and bool [B, N]."""
        return logits, batch["mask"]

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """float32 sums "count", "hits" and "nll" (nats) over the nodes."""
        return NextToken().sums(logits, _as_tokens(batch))


def _as_tokens(batch: Batch) -> dict[str, jax.Array]:
    weights = batch["mask"].astype(jnp.float32)
    return {"tokens": batch["nodes"], "targets": batch["labels"], "weights": weights}


@TASKS.register("node_classification")
class NodeClassification(Task):
    """Graphs whose nodes have classes; see `data.open_graphs`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import NodeClassification
      >>> task = NodeClassification(load_config("communities"))
      >>> task.model_arguments()
      {'num_classes': 3, 'vocab_size': 4, 'positions': 4}
      >>> task.describe()
      'communities, 1,000,000 graphs of 3 communities of 5 to 15 nodes'
    """

    unit = "graphs"
    columns = (
        Column("accuracy", "nodes right", percent),
        Column("nll", "nats a node", less=True),
    )
    curves = (
        ("nats a node", False, ("loss", "eval_nll")),
        ("", False, ("accuracy", "eval_accuracy", "lam")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        self.objective = NodeClass()

    def _open(self, split):
        fields = self._config.data
        sizes = ("communities", "smallest", "largest", "positions")
        given = {name: fields[name] for name in sizes}
        return data.open_graphs(fields.name, split, **given)

    def model_arguments(self):
        source = self.source(self.main_split)
        return {
            "num_classes": source.communities,
            "vocab_size": source.communities + 1,
            "positions": source.positions,
        }

    def row(self):
        return row_of(self.source(self.main_split))

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over a split.

        Returns:
          "accuracy" (share of the nodes whose class is the most probable one) and "nll"
          (nats a node).
        """
        del split
        sums = {name: float(v) for name, v in jax.device_get(dict(sums)).items()}
        return {
            "accuracy": sums["hits"] / sums["count"],
            "nll": sums["nll"] / sums["count"],
        }

    @staticmethod
    def rank(scores):
        return -scores["nll"]

    def describe(self):
        source = self.source(self.main_split)
        sizes = f"{source.smallest} to {source.largest} nodes"
        what = f"{source.communities} communities of {sizes}"
        return f"{source.name}, {len(source):,} graphs of {what}"
