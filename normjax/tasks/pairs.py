"""Pairs of an image and a text: which belongs to which (CLIP, BASIC)."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax import data
from normjax.adapt.hubness import dynamic_inverted_softmax
from normjax.core.moments import at_least_float32
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent, row_of
from normjax.tasks.classification import normalize_pixels
from normjax.tasks.contrastive import contrastive_loss
from normjax.tasks.scores import Gathered

DEPTHS = 1, 5
"""Of the most similar items that are looked at."""

QUERY_BETA, GALLERY_BETA = 1 / 1.99, 3.0
"""Inverse temperatures of the two banks (DBNorm; Wang et al., 2023)."""


def ranks(similarities: jax.Array, right: jax.Array) -> jax.Array:
    """int [queries]: 1, and the wrong items at least as similar as the best right one.

    So a space in which all points are one finds nothing.

    Args:
      similarities: [queries, gallery].
      right: bool, of the same shape: the items that answer a query.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> similarities = jnp.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]])
      >>> right = jnp.array([[False, False, True], [True, False, False]])
      >>> print(tasks.ranks(similarities, right))
      [2 3]
    """
    best = jnp.max(similarities, 1, keepdims=True, where=right, initial=-jnp.inf)
    return 1 + jnp.sum(~right & (similarities >= best), 1)


def dual_bank(
    similarities: jax.Array, query_bank: jax.Array, gallery_bank: jax.Array
) -> jax.Array:
    """The product of both dynamic inverted softmaxes (DualDIS; Wang et al., 2023).

    Args:
      similarities: [queries, gallery].
      query_bank: of other queries to the same gallery, [bank, gallery].
      gallery_bank: of other items to the same gallery, [bank, gallery].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> hub = jnp.array([[0.9, 0.8]])  # the first item is everybody's
      >>> bank = jnp.array([[0.9, 0.0], [0.9, 0.0]])
      >>> print(tasks.dual_bank(hub, bank, bank).argmax(-1))
      [1]
    """
    queries = dynamic_inverted_softmax(similarities, query_bank, QUERY_BETA)
    return queries * dynamic_inverted_softmax(similarities, gallery_bank, GALLERY_BETA)


class PairContrast(NamedTuple):
    """Cross entropy of every image among the texts of its batch, and the other way.

    `contrastive_loss` of what a model of two towers gives: {"image", "text"} [B, D] and
    "log_temperature" [B]. Rows meet in it, so that the mean over parts of a batch would
    be another loss. Batches are those of `data.DigitLines`: rows that happen to have
    the same text count as wrong for each other, as in CLIP.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import PairContrast
      >>> points = {"image": jnp.eye(2), "text": jnp.eye(2)}
      >>> outputs = {**points, "log_temperature": jnp.zeros(2)}
      >>> loss, scalars = PairContrast().loss(outputs, {})
      >>> print(loss.round(4), scalars["accuracy"])  # log(1 + 1 / e)
      0.3133 1.0
    """

    compares_rows = True

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Images, tokens and their mask; the order of the rows is all that is known."""
        del key
        return self.inputs(batch), {}

    def loss(self, outputs: Any, targets: Any):
        """Nats a row; "accuracy": share of both questions; "temperature"."""
        del targets
        log = jnp.mean(outputs["log_temperature"])
        loss = contrastive_loss(outputs["image"], outputs["text"], log)
        s = _products(outputs["image"], outputs["text"])
        own = jnp.arange(len(s))
        hits = [jnp.mean((jnp.argmax(t, 1) == own).astype(s.dtype)) for t in (s, s.T)]
        return loss, {"accuracy": sum(hits) / 2, "temperature": jnp.exp(log)}

    def inputs(self, batch: Batch) -> Inputs:
        """Images [B, H, W, C] in [-1, 1], and the tokens int [B, L] with their mask."""
        tokens = batch["tokens"]
        known = {"tokens": tokens, "mask": tokens != 0}
        return normalize_pixels(batch["image"], 0.5, 0.5), known

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]: where any text stands."""
        return (batch["tokens"] != 0).any(-1)

    def answers(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """S / tau [B, B], of each image with the texts of its batch, and bool [B]."""
        log = jnp.mean(outputs["log_temperature"])
        scores = _products(outputs["image"], outputs["text"]) / jnp.exp(log)
        return scores, self.rows(batch)

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """The points of all rows, for the scores compare each with all others."""
        kept = {"image": outputs["image"], "text": outputs["text"]}
        kept |= {"tokens": batch["tokens"], "counted": self.rows(batch)}
        return {name: Gathered(rows) for name, rows in kept.items()}


def _products(first: Any, second: Any) -> jax.Array:
    return at_least_float32(first) @ at_least_float32(second).T


_WAYS = (("text_of_image", "image", "text"), ("image_of_text", "text", "image"))


@TASKS.register("contrastive_pairs")
class ContrastivePairs(Task):
    """Images and texts that find each other; see `data.open_lines`.

    Scores are those of retrieval within a split, with and without dual-bank
    normalization by the first `config.data.bank` pairs of `config.data.bank_split`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import ContrastivePairs
      >>> task = ContrastivePairs(load_config("digit_pairs"))
      >>> task.model_arguments(), task.describe()
      ({'vocab_size': 11}, 'digit_lines, 1,000,000 lines of up to 4 digits with texts')
    """

    unit = "pairs"
    columns = (
        Column("text_of_image_1", "text of an image, first", percent),
        Column("text_of_image_5", "of five", percent),
        Column("image_of_text_1", "image of a text, first", percent),
        Column("image_of_text_5", "of five", percent),
        Column("text_of_image_1_banks", "with banks: text, first", percent),
        Column("image_of_text_1_banks", "image, first", percent),
    )
    curves = (
        ("nats a pair", True, ("loss",)),
        ("", False, ("accuracy", "eval_text_of_image_1", "eval_image_of_text_1")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        self.objective = PairContrast()
        if config.data.bank:
            self.source(config.data.bank_split)

    def _open(self, split):
        fields = self._config.data
        where = {"data_dir": fields.data_dir or None}
        return data.open_lines(fields.name, split, fields.length, **where)

    def model_arguments(self):
        return {"vocab_size": self.source(self.main_split).num_classes}

    def row(self):
        return row_of(self.source(self.main_split))

    def eval_batches(
        self, split: str, **arguments: Any
    ) -> Iterator[dict[str, np.ndarray]]:
        """One pass over `split`, then the pairs of the bank, in whole batches."""
        yield from super().eval_batches(split, **arguments)
        bank = -(-self._config.data.bank // arguments["batch_size"])
        if not bank:
            return
        others: Any = super().eval_batches(self._config.data.bank_split, **arguments)
        with contextlib.closing(others):
            yield from itertools.islice(others, bank)

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Recall over a split, both ways: what has the same text is right.

        Returns:
          "text_of_image_1" and "_5": images whose text is the most similar one, or one
          of five; "image_of_text_1" and "_5"; all of them with "_banks" behind, by
          similarities normalised by the two banks, where there are banks.
        """
        counted = np.asarray(sums["counted"])
        kept = {name: np.asarray(rows)[counted] for name, rows in sums.items()}
        size = len(self.source(split))
        own = {name: rows[:size] for name, rows in kept.items()}
        bank = {name: rows[size:] for name, rows in kept.items()}
        texts = own["tokens"]
        right = jnp.asarray((texts[:, None] == texts[None]).all(-1))
        scores = {}
        for way, query, item in _WAYS:
            s = _products(own[query], own[item])
            found = {"": s}
            if len(bank["tokens"]):
                banks = (_products(bank[kind], own[item]) for kind in (query, item))
                found["_banks"] = dual_bank(s, *banks)
            for suffix, similarities in found.items():
                rank = np.asarray(ranks(similarities, right))
                for depth in DEPTHS:
                    share = float(np.mean(rank <= depth))
                    scores[f"{way}_{depth}{suffix}"] = share
        return scores

    @staticmethod
    def rank(scores):
        return scores["text_of_image_1"] + scores["image_of_text_1"]

    def describe(self):
        source = self.source(self.main_split)
        lines = f"{len(source):,} lines of up to {source.length} digits"
        return f"{source.name}, {lines} with texts"
