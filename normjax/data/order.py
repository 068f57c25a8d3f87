"""The order of examples and the random numbers of augmentation, as pure functions.

Everything here depends on (seed, epoch or step, position) alone. A run resumes from
its step number, and the number of hosts and workers may change on the way, because
each of them computes the same global batch and takes its own rows.

Only raw Philox words are used (Salmon et al., "Parallel random numbers: as easy as 1,
2, 3", 2011): NumPy fixes that stream for good, but not the algorithms of `Generator`.
"""

import functools
import math

import numpy as np

_ORDER, _AUGMENT, _KEYS = 0, 1, 2  # streams under one seed

LARGEST_PERMUTATION = 2**24
"""Examples that are put in order by sorting; more are shuffled by calculation."""

_ROUNDS = 4  # double ones; Luby & Rackoff (1988) need two


def _words(seed: int, stream: int, block: int, count: int) -> np.ndarray:
    """`count` uint64 words of Philox keyed by (seed, stream), counter block `block`."""
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, 0, block], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` examples in epoch `epoch`: int64 [n], read-only.

    Args:
      seed: any int.  epoch: 0-based.  n: number of examples.

    Example:
      >>> from normjax import data
      >>> order = data.permutation(seed=0, epoch=0, n=5)
      >>> sorted(order.tolist()), order.dtype
      ([0, 1, 2, 3, 4], dtype('int64'))
    """
    order = np.argsort(_words(seed, _ORDER, epoch, n), kind="stable")
    order.flags.writeable = False
    return order


def shuffled(seed: int, epoch: int, n: int, positions: np.ndarray) -> np.ndarray:
    """Example numbers at `positions` of epoch `epoch`; memory does not grow with n.

    A Feistel network is a bijection of a grid of rows x columns >= n cells whatever its
    round functions are; cells past n are walked on until they are inside (Black &
    Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
      seed: any int.  epoch: 0-based.  n: number of examples, below 2**62.
      positions: int64 [P], each in [0, n).

    Returns:
      int64 [P]; of all n positions, every example once.
    """
    rows = np.uint64(math.isqrt(n - 1) + 1)
    columns = np.uint64(-(-n // int(rows)))
    keys = _words(seed, _KEYS, epoch, 2 * _ROUNDS).reshape(_ROUNDS, 2)
    numbers = positions.astype(np.uint64)
    outside = np.arange(len(numbers))
    while outside.size:
        row, column = np.divmod(numbers[outside], columns)
        for key in keys:
            row = (row + _mixed(column ^ key[0])) % rows
            column = (column + _mixed(row ^ key[1])) % columns
        numbers[outside] = row * columns + column
        outside = outside[numbers[outside] >= n]
    return numbers.astype(np.int64)


def _mixed(words: np.ndarray) -> np.ndarray:
    """uint64 words whose every bit depends on all of `words` (SplitMix64's finalizer,
    Steele, Lea & Flood, 2014), less those that the sum with a row could overflow."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))) >> np.uint64(1)


def name_of(n: int) -> str:
    """What the order of `n` examples is called in the records of a run."""
    return "shuffled" if n > LARGEST_PERMUTATION else "permutation"


def example_indices(
    seed: int, step: int, batch_size: int, n: int, repeats: int = 1
) -> np.ndarray:
    """Example numbers of global batch `step` (0-based): int64 [batch_size].

    The batch is positions `step * batch_size ...` of the endless sequence epoch 0,
    epoch 1, ..., so a batch may span epochs and no example is ever dropped. An epoch is
    in the order of `permutation`, or `shuffled` beyond `LARGEST_PERMUTATION` examples.

    Args:
      seed: of the order, any int.  step: number of the batch.
      batch_size: rows of the global batch.  n: number of examples.
      repeats: repeated augmentation (Hoffer et al., "Augment your batch", 2020): the
        sequence has each example that often, one after the other, and an epoch of n
        positions the first n / repeats examples of its order. In a batch the copies of
        an example lie a part of it apart, so that neighbours, which may be mixed, are
        not the same.

    Example:
      >>> from normjax import data
      >>> first, second = (data.example_indices(0, step, 4, n=8) for step in (0, 1))
      >>> sorted([*first.tolist(), *second.tolist()])  # an epoch
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    positions = step * batch_size + np.arange(batch_size)
    if repeats > 1:
        positions = positions[np.argsort(positions % repeats, kind="stable")]
    epochs, offsets = np.divmod(positions, n)
    offsets //= repeats
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
        inside = epochs == epoch
        if name_of(n) == "shuffled":
            indices[inside] = shuffled(seed, epoch, n, offsets[inside])
        else:
            indices[inside] = permutation(seed, epoch, n)[offsets[inside]]
    return indices


def uniforms(seed: int, step: int, rows: int, count: int) -> np.ndarray:
    """Random numbers of global batch `step`: float64 [rows, count] in [0, 1)."""
    words = _words(seed, _AUGMENT, step, rows * count)
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(rows, count)
