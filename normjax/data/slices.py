"""Slices of a split that is sorted by class, such as train[:80%]."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of

Runs = Sequence[tuple[int, int]]
"""Labels in order, as pairs (label, how often)."""


def labels_of(runs: Runs) -> np.ndarray:
    """The labels one by one: int64 [N]."""
    labels, counts = np.asarray(runs, np.int64).reshape(-1, 2).T
    return np.repeat(labels, counts)


def stratified(labels: np.ndarray) -> np.ndarray:
    """An order of examples of which every slice takes its share of every class.

    The k-th of the n examples of a class gets the place (k + 1/2) / n: a slice [a, b)
    of the whole is, but for rounding, the slice [a, b) of each class.

    Args:
      labels: int64 [N].

    Returns:
      int64 [N], a permutation.
    """
    counts = np.bincount(labels)
    by_label = np.argsort(labels, kind="stable")
    first = np.cumsum(counts) - counts
    number = np.empty(len(labels), np.int64)
    number[by_label] = np.arange(len(labels)) - np.repeat(first, counts)
    return np.lexsort((labels, (number + 0.5) / counts[labels]))


def ranges_of(builder: Any, split: str) -> list[tuple[str, int, int]]:
    """The (name, first, end) of the splits that "train[:80%]+test" is made of.

    Args:
      builder: the prepared TFDS set.

    Raises:
      KeyError, ValueError, NotImplementedError: no such split, as TFDS says it.
    """
    import tensorflow_datasets as tfds

    known = builder.info.splits
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    known[split]
    whole = [range(known[part.splitname].num_examples) for part in parts]
    taken = [n[part.from_ : part.to] for n, part in zip(whole, parts, strict=True)]
    names = [part.splitname for part in parts]
    return [(name, r.start, r.stop) for name, r in zip(names, taken, strict=True)]


def take(
    name: str, builder: Any, split: str, runs: Mapping[str, Runs] | None
) -> tuple[str, np.ndarray | None]:
    """Which examples a split as a config names it has: "train", "train[:80%]".

    Args:
      name: of the data set.  builder: the prepared TFDS set.
      runs: labels of its splits, if they are sorted by class.

    Returns:
      the split of `builder` to open, and the examples of it to take, int64 [N] in
      order; None for all.

    Raises:
      UserError: no such split, or an empty one.
    """
    known = builder.info.splits
    try:
        parts = ranges_of(builder, split)
    except (KeyError, ValueError, NotImplementedError) as error:
        if re.split(r"[\[+]", split)[0] in known:
            reason = " ".join(str(error).split())
            raise UserError(f"split {split!r} of {name!r}: {reason}") from None
        hint = "; a slice is a split, too, such as train[90%:]"
        message = one_of(f"split of {name!r}:", split, known)
        raise UserError(message + hint * ("train" in known)) from None
    if all(first >= end for _, first, end in parts):
        raise UserError(f"split {split!r} of {name!r} is empty")
    if runs is None or split in known:
        return split, None
    taken, before = [], 0
    for part, first, end in parts:
        order = stratified(labels_of(runs[part]))
        taken.append(before + np.sort(order[first:end]))
        before += len(order)
    return "+".join(part for part, _, _ in parts), np.concatenate(taken)
