"""Recognition of lines of text: from columns of an image to a string."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax import data
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent, row_of
from normjax.tasks.classification import normalize_pixels

BLANK = 0


def best_path(logits: jax.Array) -> jax.Array:
    """The most probable class of every frame, without repetitions and blanks.

    Args:
      logits: [B, T, K]; class 0 is the blank.

    Returns:
      int32 [B, T], zeros behind the end.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import best_path
      >>> frames = jnp.array([[0, 3, 3, 0, 3, 1]])
      >>> print(best_path(jax.nn.one_hot(frames, 4)))
      [[3 3 1 0 0 0]]
    """
    best = jnp.argmax(logits, -1)
    before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
    kept = (best != BLANK) & (best != before)
    place = jnp.where(kept, jnp.cumsum(kept, 1) - 1, best.shape[1])
    rows = jnp.arange(len(best))[:, None]
    empty = jnp.zeros(best.shape, jnp.int32)
    return empty.at[rows, place].set(best.astype(jnp.int32), mode="drop")


def edit_distance(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Insertions, deletions and substitutions from one string to the other at least.

    (Levenshtein, 1966.)

    Args:
      found: int [B, T].  wanted: int [B, L]; both end in zeros.

    Returns:
      int32 [B].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import edit_distance
      >>> print(edit_distance(jnp.array([[1, 2, 3, 0]]), jnp.array([[1, 3]])))
      [1]
    """
    places = jnp.arange(wanted.shape[1] + 1, dtype=jnp.int32)[None]

    def read(row, token):
        other = (token[:, None] != wanted).astype(jnp.int32)
        changed = jnp.minimum(row[:, :-1] + other, row[:, 1:] + 1)
        new = jnp.concatenate([row[:, :1] + 1, changed], 1)
        # One insertion behind the other: the least of all places before.
        new = jax.lax.cummin(new - places, axis=1) + places
        return jnp.where((token == BLANK)[:, None], row, new), None

    first = jnp.broadcast_to(places, (len(wanted), places.shape[1]))
    last, _ = jax.lax.scan(read, first, found.T)
    length = jnp.sum(wanted != BLANK, 1, keepdims=True)
    return jnp.take_along_axis(last, length, 1)[:, 0]


class Transcription(NamedTuple):
    """CTC: all paths of classes and blanks that make a string (Graves et al., 2006).

    Batches are those of `data.DigitLines`; outputs are logits of frames, [B, T, K] with
    the blank as class 0. The loss is -log P(string), mean over the lines.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Transcription
      >>> objective = Transcription()
      >>> loss, _ = objective.loss(jnp.zeros((1, 2, 3)), jnp.array([[1]]))
      >>> print(loss.round(4))  # log(9 / 3): blank 1, 1 blank, 1 1
      1.0986
    """

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Images and strings int [B, L]."""
        del key
        return self.inputs(batch), batch["tokens"]

    def loss(self, logits: jax.Array, targets: jax.Array):
        """Nats a line; "accuracy": share of the lines that are right."""
        found = best_path(logits)
        wanted = jnp.pad(targets, ((0, 0), (0, found.shape[1] - targets.shape[1])))
        right = jnp.all(found == wanted, -1)
        scalars = {"accuracy": jnp.mean(right.astype(jnp.float32))}
        return jnp.mean(_nats(logits, targets)), scalars

    def inputs(self, batch: Batch) -> Inputs:
        """Images [B, H, W, C] in [-1, 1]."""
        return normalize_pixels(batch["image"], 0.5, 0.5), {}

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]: where any string stands."""
        return (batch["tokens"] != BLANK).any(-1)

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, T, K] and bool [B, T]."""
        rows = self.rows(batch)[:, None]
        return logits, jnp.broadcast_to(rows, logits.shape[:2])

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """float32 sums "rows", "exact", "characters", "edits", "nll" of the lines."""
        tokens, rows = batch["tokens"], self.rows(batch)
        logits = jnp.where(rows[:, None, None], logits, 0.0)
        edits = edit_distance(best_path(logits), tokens)

        def total(values):
            return jnp.sum(jnp.where(rows, values, 0).astype(jnp.float32))

        return {
            "rows": total(rows),
            "exact": total(edits == 0),
            "characters": total(jnp.sum(tokens != BLANK, -1)),
            "edits": total(edits),
            "nll": total(_nats(logits, tokens)),
        }


def _nats(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """-log P of each string, [B]; all frames count."""
    absent = (tokens == BLANK).astype(logits.dtype)
    frames = jnp.zeros(logits.shape[:2], logits.dtype)
    return optax.ctc_loss(logits, frames, tokens, absent, blank_id=BLANK)


@TASKS.register("line_recognition")
class LineRecognition(Task):
    """Images of lines of text; see `data.open_lines`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import LineRecognition
      >>> task = LineRecognition(load_config("digit_lines"))
      >>> task.model_arguments(), task.describe()
      ({'num_classes': 11}, 'digit_lines, 1,000,000 lines of up to 8 digits')
    """

    unit = "lines"
    columns = (
        Column("exact", "lines right", percent),
        Column("character_error_rate", "characters wrong", percent, less=True),
        Column("nll", "nats a line", less=True),
    )
    curves = (
        ("nats a line", True, ("loss", "eval_nll")),
        ("", False, ("accuracy", "eval_exact", "eval_character_error_rate", "lam")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        self.objective = Transcription()

    def _open(self, split):
        fields = self._config.data
        where = {"data_dir": fields.data_dir or None}
        return data.open_lines(fields.name, split, fields.length, **where)

    def model_arguments(self):
        return {"num_classes": self.source(self.main_split).num_classes}

    def row(self):
        return row_of(self.source(self.main_split))

    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over a split, strings by the best path.

        Returns:
          "exact" (share of the lines that are right), "character_error_rate" (edits
          over characters) and "nll" (nats a line).
        """
        del split
        sums = {name: float(v) for name, v in jax.device_get(dict(sums)).items()}
        return {
            "exact": sums["exact"] / sums["rows"],
            "character_error_rate": sums["edits"] / sums["characters"],
            "nll": sums["nll"] / sums["rows"],
        }

    @staticmethod
    def rank(scores):
        return -scores["character_error_rate"]

    def describe(self):
        source = self.source(self.main_split)
        return f"{source.name}, {len(source):,} lines of up to {source.length} digits"
