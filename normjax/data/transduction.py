"""Synthetic pairs of strings, source and target: a translation that can be checked."""

import string

import numpy as np

from normjax.core.errors import UserError
from normjax.data.made import Made, check_made, random_words
from normjax.data.rows import Batch

SHORTEST = 4  # characters of a source

_STREAM = 2  # of random words, beside those of `data.order`

_LETTERS = string.ascii_lowercase + string.ascii_uppercase
_ALPHABET = len(string.ascii_lowercase)
_HELD_OUT = {"validation": 0, "test": 1}
_EXAMPLES = {"train": 1_000_000, "validation": 2_000, "test": 2_000}


class ReversedCase(Made):
    """Pairs of a random string and the same backwards in the other case.

        "Nabla" -> "ALBAn": target = source[::-1].swapcase()

    Pair i of a split is a pure function of (split, i): nothing is stored. A source has
    4 to L of the 52 ASCII letters, every length and letter as probable as any other.
    Which split a source is of follows from the sum of its letters' places in the
    alphabet (a, A: 0) modulo 26: 0 is validation, 1 is test, others train. So no source
    of one split is ever one of another.

    Letters are the tokens 0 to 51, small ones first; END, `end_token`, is 52. A source
    s_1 ... s_n is read as s_1 ... s_n END; a target t_1 ... t_n has the inputs
    END t_1 ... t_n and the targets t_1 ... t_n END. All rows have L + 1 tokens. They
    are batches of {"source": int32 [B, L + 1], "source_mask": bool, "tokens": int32,
    "targets": int32, "mask": bool, "weights": float32}; behind the end of a string
    tokens are 0, masks False and weights 0.

    Attributes:
      name: of the set.  split: its split.  length: L.
      vocab_size: tokens, END among them.  end_token: END.
      num_examples: pairs of the split.

    Example:
      >>> from normjax import data
      >>> source = data.open_transduction("reversed_case", "train", length=5)
      >>> isinstance(source, data.ReversedCase)
      True
      >>> word, target = source.pair(0)
      >>> word[::-1].swapcase() == target
      True
      >>> source.load(range(2), None)["source"].shape  # END behind 5 letters
      (2, 6)
    """

    name, kind = "reversed_case", "text"
    vocab_size, end_token = len(_LETTERS) + 1, len(_LETTERS)

    def __init__(self, split: str, length: int):
        super().__init__(split, _EXAMPLES[split])
        self.length = length

    def blank(self, count: int) -> Batch:
        """`count` rows of padding."""
        shape = (count, self.length + 1)
        kinds = {"weights": np.float32, "mask": bool, "source_mask": bool}
        names = ("source", "tokens", "targets")
        kinds = {**dict.fromkeys(names, np.int32), **kinds}
        return {name: np.zeros(shape, kind) for name, kind in kinds.items()}

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`, int64 [B]; nothing about them is random."""
        del u
        batch = self.blank(len(indices))
        for row, index in enumerate(indices):
            source = self._source(int(index))
            target = (source[::-1] + _ALPHABET) % len(_LETTERS)
            end, n = self.end_token, len(source)
            batch["source"][row, : n + 1] = [*source, end]
            batch["tokens"][row, : n + 1] = [end, *target]
            batch["targets"][row, : n + 1] = [*target, end]
            for name in ("source_mask", "mask", "weights"):
                batch[name][row, : n + 1] = 1
        return batch

    def pair(self, index: int) -> tuple[str, str]:
        """Source and target of pair `index` as strings."""
        batch = self.load(np.array([index]), np.empty((1, 0)))
        return self.decode(batch["source"][0]), self.decode(batch["targets"][0])

    def decode(self, tokens: np.ndarray) -> str:
        """The letters before END."""
        end = list(tokens).index(self.end_token)
        return "".join(_LETTERS[token] for token in tokens[:end])

    def _source(self, index: int) -> np.ndarray:
        """Tokens of source `index`, int64 [n]."""
        words = random_words(self.split, _STREAM, index, self.length + 2)
        size, place, *letters = map(int, words)
        n = SHORTEST + size % (self.length - SHORTEST + 1)
        source = np.array([word % len(_LETTERS) for word in letters[:n]])
        wanted = _HELD_OUT.get(self.split, 2 + place % (_ALPHABET - 2))
        case, rest = source[0] // _ALPHABET, source[1:].sum()
        source[0] = case * _ALPHABET + (wanted - rest) % _ALPHABET
        return source


def open_transduction(name: str, split: str, length: int = 16) -> ReversedCase:
    """Open one split of a set of pairs.

    Args:
      name: "reversed_case".  split: "train", "validation" or "test".
      length: letters of the longest source, at least 4.

    Raises:
      UserError: unknown name or split, a length that is too small.

    Example:
      >>> from normjax import data
      >>> source = data.open_transduction("reversed_case", "validation", length=5)
      >>> source.vocab_size, source.end_token, source.split
      (53, 52, 'validation')
    """
    check_made("set of pairs", name, split, ReversedCase)
    if length < SHORTEST:
        raise UserError(f"data.length={length} must be at least {SHORTEST}")
    return ReversedCase(split, length)
