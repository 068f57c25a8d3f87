"""Transduction: a target sequence from a source sequence."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax import data
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent, row_of
from normjax.tasks.language import NextToken

_TARGET = NextToken(padded=True)


class SourceToTarget(NamedTuple):
    """Cross entropy of every target token, given the source and those before it.

    Batches are those of `data.ReversedCase`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import data
      >>> from normjax.tasks import SourceToTarget
      >>> source = data.open_transduction("reversed_case", "validation", length=5)
      >>> batch = next(data.eval_batches(source, batch_size=4))
      >>> sums = SourceToTarget().sums(jnp.zeros((4, 6, 53)), batch)
      >>> sorted(sums), int(sums["rows"])
      (['count', 'exact', 'hits', 'nll', 'rows'], 4)
    """

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs and {"tokens", "weights"} [B, L], weights with the mean 1."""
        _, targets = _TARGET.examples(batch, key)
        return self.inputs(batch), targets

    def loss(self, logits: jax.Array, targets: Any):
        """Nats a token that counts; "accuracy" of the next token."""
        return _TARGET.loss(logits, targets)

    def inputs(self, batch: Batch) -> Inputs:
        """Target tokens [B, L], the source and both masks."""
        known = ("source", "source_mask", "mask")
        return batch["tokens"], {name: batch[name] for name in known}

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]."""
        return _TARGET.rows(batch)

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, L, V] and bool [B, L]."""
        return _TARGET.answers(logits, batch)

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """float32 sums over the tokens that count, and over rows with any of them.

        Returns:
          "count", "hits" and "nll" of `NextToken`; "rows", and "exact", those whose
          tokens are all hits.
        """
        _, counted = self.answers(logits, batch)
        right = (jnp.argmax(logits, -1) == batch["targets"]) | ~counted
        rows = self.rows(batch)
        return {
            **_TARGET.sums(logits, batch),
            "rows": jnp.sum(rows.astype(jnp.float32)),
            "exact": jnp.sum((jnp.all(right, -1) & rows).astype(jnp.float32)),
        }


@TASKS.register("transduction")
class Transduction(Task):
    """Pairs of sequences; see `data.open_transduction`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import Transduction
      >>> task = Transduction(load_config("transduction"))
      >>> task.model_arguments()
      {'vocab_size': 53}
      >>> task.rank({"exact": 0.75, "nll": 0.1})
      -0.1
    """

    unit = "target tokens"
    columns = (
        Column("exact", "sequences right", percent),
        Column("accuracy", "next token right", percent),
        Column("nll", "nats a token", less=True),
    )
    curves = (
        ("nats a token", True, ("loss", "eval_nll")),
        ("", False, ("accuracy", "eval_accuracy", "eval_exact", "lam")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        self.units_per_row = config.data.length + 1
        self.objective = SourceToTarget()

    def _open(self, split):
        fields = self._config.data
        return data.open_transduction(fields.name, split, fields.length)

    def model_arguments(self):
        return {"vocab_size": self.source(self.main_split).vocab_size}

    def row(self):
        return row_of(self.source(self.main_split))

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over a split, each token after the true ones before it.

        Returns:
          "nll" (nats a token, END among them), "accuracy" (tokens that are the most
          probable one) and "exact" (sequences all of whose tokens are).
        """
        del split
        sums = {name: float(v) for name, v in jax.device_get(dict(sums)).items()}
        return {
            "nll": sums["nll"] / sums["count"],
            "accuracy": sums["hits"] / sums["count"],
            "exact": sums["exact"] / sums["rows"],
        }

    @staticmethod
    def rank(scores):
        return -scores["nll"]

    def describe(self):
        source = self.source(self.main_split)
        return f"{source.name}, {len(source):,} pairs of up to {source.length} letters"
