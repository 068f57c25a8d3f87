"""The order of examples and the random numbers of augmentation, as pure functions.

Everything here depends on (seed, epoch or step, position) alone. A run resumes from
its step number, and the number of hosts and workers may change on the way, because
each of them computes the same global batch and takes its own rows.

Only raw Philox words are used (Salmon et al., "Parallel random numbers: as easy as 1,
2, 3", 2011): NumPy fixes that stream for good, but not the algorithms of `Generator`.
"""

import functools

import numpy as np

_ORDER, _AUGMENT = 0, 1  # streams under one seed


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
    """
    order = np.argsort(_words(seed, _ORDER, epoch, n), kind="stable")
    order.flags.writeable = False
    return order


def example_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """Example numbers of global batch `step` (0-based): int64 [batch_size].

    The batch is positions `step * batch_size ...` of the endless sequence epoch 0,
    epoch 1, ..., so a batch may span epochs and no example is ever dropped.
    """
    positions = step * batch_size + np.arange(batch_size)
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        indices[inside] = permutation(seed, epoch, n)[offsets[inside]]
    return indices


def uniforms(seed: int, step: int, rows: int, count: int) -> np.ndarray:
    """Random numbers of global batch `step`: float64 [rows, count] in [0, 1)."""
    words = _words(seed, _AUGMENT, step, rows * count)
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(rows, count)
