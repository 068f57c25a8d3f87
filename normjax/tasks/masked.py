"""Masked language modeling: which tokens stood where they are hidden."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.tasks.base import TASKS, Batch, Inputs
from normjax.tasks.language import LanguageModeling, NextToken

KEPT, RANDOM = 0.1, 0.1
"""Of the chosen tokens: those that stay, and those that become any other."""


class MaskedToken(NamedTuple):
    """Cross entropy of a random share of the tokens, given all others.

    Of the tokens that count, each is chosen with probability `rate`; 80 % of the chosen
    become `mask_token`, 10 % any token, 10 % stay (BERT; Devlin et al., 2019). In
    training they are drawn anew; in evaluation what is chosen in a row follows from its
    tokens alone. Batches are those of `data.TextSource`; their targets are the text.

    Attributes:
      vocab_size: tokens of the text.
      mask_token: what hides a token.
      rate: share of the tokens that is chosen.
      padded: rows end in padding: the model gets "mask".

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import MaskedToken
      >>> objective = MaskedToken(vocab_size=4, mask_token=4, rate=1.0)
      >>> batch = {"targets": jnp.zeros((2, 100), int), "weights": jnp.ones((2, 100))}
      >>> (tokens, _), targets = objective.examples(batch, jax.random.key(0))
      >>> bool(0.7 < (tokens == 4).mean() < 0.9)
      True
      >>> loss, scalars = objective.loss(jnp.zeros((2, 100, 5)), targets)
      >>> print(loss.round(3), sorted(scalars))  # log(5)
      1.609 ['accuracy']
    """

    vocab_size: int
    mask_token: int
    rate: float = 0.15
    padded: bool = False

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Tokens [B, L], some of them hidden, and {"tokens", "weights"} [B, L].

        Weights are 0 but at the chosen tokens, with the mean 1.
        """
        draws = jax.random.uniform(key, (2, *batch["targets"].shape))
        other = jax.random.randint(
            jax.random.fold_in(key, 1), batch["targets"].shape, 0, self.vocab_size
        )
        chosen = self._chosen(batch, draws[0])
        weights = chosen / jnp.maximum(jnp.mean(chosen, dtype=jnp.float32), 1e-9)
        inputs = self._hidden(batch, chosen, draws[1], other)
        return inputs, {"tokens": batch["targets"], "weights": weights}

    def loss(self, logits: jax.Array, targets: Any):
        """Nats a chosen token; "accuracy" of them."""
        return NextToken().loss(logits, targets)

    def inputs(self, batch: Batch) -> Inputs:
        """Tokens [B, L], some of them hidden."""
        draws, other = self._fixed(batch)
        return self._hidden(batch, self._chosen(batch, draws[0]), draws[1], other)

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]."""
        return (batch["weights"] > 0).any(-1)

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, L, V] and bool [B, L], the chosen tokens."""
        return logits, self._chosen(batch, self._fixed(batch)[0][0])

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """float32 sums "count", "hits" and "nll" (nats) over the chosen tokens."""
        _, chosen = self.answers(logits, batch)
        return NextToken().sums(logits, {**batch, "weights": chosen})

    def _chosen(self, batch: Batch, draws: jax.Array) -> jax.Array:
        return (draws < self.rate) & (batch["weights"] > 0)

    def _hidden(self, batch: Batch, chosen, draws, other) -> Inputs:
        tokens = batch["targets"]
        changed = jnp.where(draws < RANDOM, other, self.mask_token)
        changed = jnp.where(draws >= 1 - KEPT, tokens, changed)
        known = {"mask": batch["mask"]} if self.padded else {}
        return jnp.where(chosen, changed, tokens), known

    def _fixed(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Draws [2, B, L] and other tokens [B, L], functions of each row's tokens."""
        tokens = batch["targets"].astype(jnp.uint32)
        shape = tokens.shape[1:]
        odd = 2 * jnp.arange(shape[0], dtype=jnp.uint32) + 1
        mixed = jnp.sum((tokens + 1) * odd[None] * jnp.uint32(2654435761), -1)

        def row(number):
            key = jax.random.fold_in(jax.random.key(0), number)
            draws = jax.random.uniform(key, (2, *shape))
            other = jax.random.fold_in(key, 1)
            return draws, jax.random.randint(other, shape, 0, self.vocab_size)

        return jax.vmap(row, out_axes=(1, 0))(mixed.astype(jnp.uint32))


@TASKS.register("masked_language_modeling")
class MaskedLanguageModeling(LanguageModeling):
    """Text as rows of tokens, some of them hidden; see `data.open_text`.

    Example:
      >>> from normjax import data
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import MaskedLanguageModeling
      >>> config = load_config(f"masked_text:path={data.__file__}")  # any text file
      >>> MaskedLanguageModeling(config).model_arguments()  # 256, END and the mask
      {'vocab_size': 258}
    """

    objective: MaskedToken
    columns = tuple(
        column if column.score != "accuracy" else column._replace(title="tokens right")
        for column in LanguageModeling.columns
        if column.score != "bits_per_byte"
    )
    curves = (
        ("nats a token", False, ("loss", "eval_nll")),
        ("", False, ("accuracy", "eval_accuracy", "lam")),
    )

    def _objective(self, padded: bool) -> MaskedToken:
        tokens = self.source(self.main_split).vocab_size
        given = self._config.mask_token
        hides = given if given >= 0 else tokens
        return MaskedToken(tokens, hides, self._config.mask_rate, padded)

    def model_arguments(self):
        objective = self.objective
        return {"vocab_size": max(objective.vocab_size, objective.mask_token + 1)}

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over the chosen tokens of a split.

        Returns:
          "nll" (nats a token), "perplexity" (its exponential) and "accuracy".
        """
        del split
        sums = {name: float(v) for name, v in jax.device_get(dict(sums)).items()}
        count = max(sums["count"], 1.0)
        return {
            "nll": sums["nll"] / count,
            "perplexity": math.exp(min(sums["nll"] / count, 700.0)),
            "accuracy": sums["hits"] / count,
        }
