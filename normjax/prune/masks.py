"""Which weights go: scores, thresholds and patterns (PERP; Zimmer et al., 2023)."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from normjax.core.errors import UserError


def smallest(scores: Any, sparsity: float) -> np.ndarray:
    """bool, the scores up to the one of rank int(sparsity * n) of n, which goes too.

    So one more than int(sparsity * n) goes, and all that are equal to it.

    Args:
      scores: [...], such as |W|.  sparsity: in [0, 1).

    Raises:
      UserError: a sparsity outside.

    Example:
      >>> from normjax import prune
      >>> prune.smallest([[1.0, 4.0], [3.0, 2.0]], 0.25)
      array([[ True, False],
             [False,  True]])
    """
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity must lie in [0, 1), got {sparsity}")
    scores = np.asarray(scores)
    rank = int(sparsity * scores.size)
    return scores <= np.sort(scores, axis=None)[rank]


def smallest_in_groups(scores: Any, count: int, group: int) -> np.ndarray:
    """bool, the `count` smallest of every `group` consecutive inputs of an output.

    The n:m patterns of sparse matrix units: 2 of 4. The first of equals go.

    Args:
      scores: [in, out].  count: n.  group: m, that divides in.

    Raises:
      UserError: groups that do not fit.

    Example:
      >>> from normjax import prune
      >>> prune.smallest_in_groups([[1.0], [4.0], [3.0], [2.0]], 1, 2).ravel()
      array([ True, False, False,  True])
    """
    scores = np.asarray(scores)
    inputs, outputs = scores.shape
    if inputs % group or not 0 <= count <= group:
        raise UserError(f"{count} of every {group} do not fit {inputs} inputs")
    parts = scores.reshape(-1, group, outputs)
    order = np.argsort(parts, 1, kind="stable")[:, :count]
    gone = np.zeros(parts.shape, bool)
    np.put_along_axis(gone, order, True, 1)
    return gone.reshape(scores.shape)


def input_squares(batches: Iterable[Any]) -> np.ndarray:
    """n_i: mean over sequences of the sum over their tokens of x_i^2.

    Args:
      batches: of what a linear layer reads, [B, N, in].

    Returns:
      float64 [in].

    Example:
      >>> import numpy as np
      >>> from normjax import prune
      >>> x = np.array([[[1.0], [2.0]], [[0.0], [1.0]]])
      >>> prune.input_squares([x])
      array([3.])
    """
    total, count = np.zeros(()), 0
    for batch in batches:
        x = np.asarray(batch, np.float64)
        total, count = total + np.square(x).sum((0, 1)), count + len(x)
    return total / count


def wanda_scores(kernel: Any, squares: Any) -> np.ndarray:
    """|W_io| sqrt(n_i): weights by what they carry (Wanda; Sun et al., 2024).

    Args:
      kernel: W, [in, out].  squares: n, [in], of `input_squares`.

    Example:
      >>> from normjax import prune
      >>> prune.wanda_scores([[1.0], [-2.0]], [9.0, 0.25]).ravel()
      array([3., 1.])
    """
    return np.abs(np.asarray(kernel)) * np.sqrt(np.asarray(squares))[:, None]
