"""Activate-while-pruning: weights go whose absence makes neurons alive (AP)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Masks = Mapping[str, Any]


def globally_pruned(
    weights: Mapping[str, Any], masks: Masks, percent: float
) -> dict[str, np.ndarray]:
    """Masks without the smallest `percent` of the weights that are left, of all layers.

    The threshold is that percentile of |w| over weights whose mask is 1; what lies
    strictly below it goes.

    Args:
      weights: by path.  masks: 0 or 1, of their shapes.  percent: of those left.

    Returns:
      New masks, 0 or 1.

    Example:
      >>> import numpy as np
      >>> from normjax import prune
      >>> weights = {"a": np.array([1.0, -5.0]), "b": np.array([-0.5, 3.0])}
      >>> ones = {"a": np.ones(2), "b": np.ones(2)}
      >>> prune.globally_pruned(weights, ones, 50.0)
      {'a': array([0., 1.]), 'b': array([0., 1.])}
    """
    left = [np.abs(w)[np.asarray(masks[k]) == 1] for k, w in weights.items()]
    threshold = np.percentile(np.concatenate(left), percent)
    return {
        k: np.where(np.abs(w) < threshold, 0.0, masks[k]) for k, w in weights.items()
    }


def activated(
    trained: Mapping[str, Any],
    start: Mapping[str, Any],
    masks: Masks,
    count: int,
) -> dict[str, np.ndarray]:
    """Masks without negative weights that moved least in a round (AP; 2023).

    Of the negative weights left in all layers those go whose |trained - start| is at
    most the one of rank `count`, counted from 0: `count` + 1 of them. Fewer negative
    weights can only raise what ReLUs read of inputs that are not negative. Weights are
    then set back to where the run began, and trained again.

    Args:
      trained, start: at the end and the beginning of a round, by path.
      masks: 0 or 1, of their shapes.
      count: floor(share * weights that are left), see `activation_count`.

    Returns:
      New masks, 0 or 1.

    Example:
      >>> import numpy as np
      >>> from normjax import prune
      >>> start, trained = {"a": np.zeros(3)}, {"a": np.array([-0.1, -2.0, 0.01])}
      >>> prune.activated(trained, start, {"a": np.ones(3)}, 0)
      {'a': array([0., 1., 1.])}
    """
    moved = {k: np.abs(np.asarray(w) - start[k]) for k, w in trained.items()}
    low = {
        k: (np.asarray(w) < 0) & (np.asarray(masks[k]) == 1) for k, w in trained.items()
    }
    every = np.sort(np.concatenate([moved[k][low[k]] for k in trained]))
    if not len(every):
        return {k: np.asarray(m) for k, m in masks.items()}
    threshold = every[min(count, len(every) - 1)]
    return {
        k: np.where(low[k] & (moved[k] <= threshold), 0.0, masks[k]) for k in trained
    }


def activation_count(masks: Masks, percent: float) -> int:
    """floor(percent / 100 * weights that are left): the rank that `activated` takes.

    Args:
      masks: 0 or 1, by path.  percent: 2 in the paper, beside 18 by magnitude.

    Example:
      >>> import numpy as np
      >>> from normjax import prune
      >>> prune.activation_count({"a": np.ones(150)}, 2.0)
      3
    """
    return math.floor(percent / 100 * sum(int(np.sum(m)) for m in masks.values()))
