"""Splits that the names of files and folders tell: train.txt, val/0.txt, x.test.raw."""

import re
from collections.abc import Sequence

from normjax.core.errors import UserError

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "heldout", "holdout"), "test"),
}
"""Words of names and the split they stand for."""

_SURE = ("val", "validation")
"""Words that stand for nothing else, as test_colors.py and is_valid.py do."""


def split_of(name: str) -> tuple[str | None, bool]:
    """The split that a name tells, and whether it can mean nothing else.

    A folder counts if it is called like a split, the outermost first; a file if a part
    of its name between dots begins or ends with such a word, numbers and "set", "data"
    and "split" aside: "test-00000-of-00002.txt" can mean nothing else,
    "wiki.train.tokens" and "test_colors.py" can.
    """
    *folders, file = name.split("/")
    for folder in folders:
        words = _words(folder)
        if len(words) == 1 and words[0] in WORDS:
            return WORDS[words[0]], True
    parts = [_words(part) for part in file.split(".")]
    ends = [word for words in parts for word in (*words[:1], *words[-1:])]
    splits = {WORDS[word] for word in ends if word in WORDS}
    if len(splits) != 1:
        return None, False
    alone = len(parts[0]) == 1 and parts[0][0] in WORDS
    return splits.pop(), alone or any(word in _SURE for word in ends)


def _words(name: str) -> list[str]:
    """Words between digits, dashes and underscores, without "of" and "set"."""
    found = re.split(r"[\d_-]+", name.lower())
    plain = [re.sub(r"(?<=.)(set|data|split)$", "", word) for word in found]
    return [w for w in plain if w not in ("", "of", "set", "data", "split")]


def named_splits(names: Sequence[str]) -> dict[str, list[str]] | None:
    """The names by split where they tell it, else None.

    They do where all of them name a split, and more than one; of files that name none
    beside some that are held out by name nobody knows what they are.

    Raises:
      UserError: such files.
    """
    told = {name: split_of(name) for name in names}
    splits: dict[str, list[str]] = {}
    for name, (split, _) in told.items():
        splits.setdefault(split or "", []).append(name)
    unnamed = splits.get("")
    if not unnamed:
        return splits if len(splits) > 1 else None
    certain = [n for n, (s, sure) in told.items() if sure and s not in (None, "train")]
    likely = [n for n, (s, _) in told.items() if s not in (None, "train")]
    held = certain or (likely if "train" in splits else [])
    if held:
        fields = "name them by text.train_path, text.validation_path and text.test_path"
        raise UserError(
            f"text_file: {held[0]!r} is {told[held[0]][0]} by its name, "
            f"{unnamed[0]!r} names no split; {fields}"
        )
    return None
