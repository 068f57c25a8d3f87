"""Language modeling: which token comes next."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax import data
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent
from normjax.tasks.described import Text


class NextToken(NamedTuple):
    """Cross entropy of every token against what the tokens before it predict.

    Batches are those of `data.TextSource`.

    Attributes:
      z_loss_weight: of mean(logsumexp(logits)**2), which keeps the logits from drifting
        (PaLM; Chowdhery et al., 2022); 0 is off.
      packed: rows hold several documents: the model gets "positions".
      padded: rows end in padding: the model gets "mask".

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import NextToken
      >>> objective = NextToken()
      >>> batch = {"tokens": jnp.array([[2, 0]]), "targets": jnp.array([[0, 1]])}
      >>> batch["weights"] = jnp.ones((1, 2))
      >>> _, targets = objective.examples(batch, jax.random.key(0))
      >>> loss, scalars = objective.loss(jnp.zeros((1, 2, 4)), targets)
      >>> print(loss.round(3), sorted(scalars))  # log(4)
      1.386 ['accuracy']
    """

    z_loss_weight: float = 0.0
    packed: bool = False
    padded: bool = False

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Tokens [B, L] and {"tokens", "weights"}, weights with the mean 1."""
        del key
        weights = batch["weights"]
        weights = weights / jnp.maximum(jnp.mean(weights), 1e-9)
        return self.inputs(batch), {"tokens": batch["targets"], "weights": weights}

    def loss(self, logits: jax.Array, targets: Any):
        """Nats a token that counts, and the z-loss; "accuracy" of the next token."""
        weights = targets["weights"]
        total = jax.nn.logsumexp(logits, axis=-1)
        nll = jnp.mean(weights * (total - _own(logits, targets["tokens"])))
        hit = jnp.argmax(logits, -1) == targets["tokens"]
        scalars = {"accuracy": jnp.mean(weights * hit)}
        if not self.z_loss_weight:
            return nll, scalars
        scalars["z_loss"] = jnp.mean(weights * jnp.square(total))
        return nll + self.z_loss_weight * scalars["z_loss"], scalars

    def inputs(self, batch: Batch) -> Inputs:
        """Tokens [B, L] and what is to be known of them."""
        known = {}
        if self.padded:
            known["mask"] = batch["mask"]
        if self.packed:
            known["positions"] = batch["positions"]
        return batch["tokens"], known

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]."""
        return (batch["weights"] > 0).any(-1)

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, L, V] and bool [B, L]."""
        return logits, batch["weights"] > 0

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """float32 sums "count", "hits" and "nll" (nats) over the tokens that count."""
        logits, counted = self.answers(logits, batch)
        logits = jnp.where(counted[..., None], logits, 0.0)
        nll = jax.nn.logsumexp(logits, axis=-1) - _own(logits, batch["targets"])
        hit = (jnp.argmax(logits, -1) == batch["targets"]) & counted
        return {
            "count": jnp.sum(counted.astype(jnp.float32)),
            "hits": jnp.sum(hit.astype(jnp.float32)),
            "nll": jnp.sum(jnp.where(counted, nll, 0.0)),
        }


def _own(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, L], the logits of `tokens`."""
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]


@TASKS.register("language_modeling")
class LanguageModeling(Task):
    """Text as rows of tokens; see `data.open_text`.

    Example:
      >>> from normjax import data
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import LanguageModeling
      >>> config = load_config(f"lm_text:path={data.__file__}")  # any text file
      >>> LanguageModeling(config).model_arguments()
      {'vocab_size': 257}
    """

    unit = "tokens"
    described_as = Text
    columns = (
        Column("bits_per_byte", "bits per byte", less=True),
        Column("perplexity", "perplexity", less=True),
        Column("nll", "nats a token", less=True),
        Column("accuracy", "next token right", percent),
    )
    curves = (
        ("nats a token", False, ("loss", "eval_nll")),
        ("bits per byte", False, ("eval_bits_per_byte",)),
        ("", False, ("accuracy", "eval_accuracy", "lam")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        self.units_per_row = config.data.text.length
        self.objective = self._objective(config.data.text.layout == "padded")

    def _objective(self, padded: bool) -> Any:
        return NextToken(self._config.z_loss_weight, not padded, padded)

    def _open(self, split):
        fields = self._config.data
        where = {"data_dir": fields.data_dir or None, "path": fields.path or None}
        text = {name: fields.text[name] for name in fields.text}
        return data.open_text(fields.name, split, text, **where)

    def model_arguments(self):
        return {"vocab_size": self.source(self.main_split).vocab_size}

    def row(self):
        shape = (self.units_per_row,)
        ints = ("tokens", "targets", "positions")
        return {
            **{name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ints},
            "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
            "weights": jax.ShapeDtypeStruct(shape, jnp.float32),
        }

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over a split.

        Returns:
          "nll" (nats a token, END among them), "perplexity" (its exponential),
          "bits_per_byte" (bits of all tokens over the bytes of the text, so that it
          compares across tokenizers) and "accuracy".
        """
        sums = jax.device_get(dict(sums))
        nats, count = float(sums["nll"]), float(sums["count"])
        bits = nats / math.log(2) / self.source(split).num_bytes
        perplexity = math.exp(min(nats / count, 700.0))
        return {
            "nll": nats / count,
            "perplexity": perplexity,
            "bits_per_byte": bits,
            "accuracy": float(sums["hits"]) / count,
        }

    @staticmethod
    def rank(scores):
        return -scores["nll"]

    def describe(self):
        source = self.source(self.main_split)
        size = f"{source.num_documents:,} documents, {source.num_tokens:,} tokens"
        return f"{self._config.data.name}, {size}"
