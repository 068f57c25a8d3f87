"""How much the parts of a network move while it learns."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


def parameter_changes(
    states: Sequence[Any], parts: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Mean |w_e - w_{e-1}| over the parameters of each part.

    Which parts change when tasks follow each other is what "Does Continual Learning
    Equally Forget All Parameters?" (Zhao et al., 2023) looks at. Its exact measure was
    not found: this one is ours.

    Args:
      states: trees of parameters at moments e = 0, 1, ...
      parts: regular expression by name, searched in the path ("blocks_0/mlp/fc1/bias");
        the first that is found counts.

    Returns:
      float64 [moments - 1] by part; parts without parameters are left out.

    Example:
      >>> import numpy as np
      >>> from normjax import analysis
      >>> states = [
      ...     {"norm": {"scale": np.ones(2)}, "head": np.full(1, e)} for e in (0, 2)
      ... ]
      >>> found = analysis.parameter_changes(states, {"norm": "norm", "head": "head"})
      >>> {part: change.tolist() for part, change in found.items()}
      {'norm': [0.0], 'head': [2.0]}
    """
    flat = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    held: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(flat[0]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        part = next((p for p, pattern in parts.items() if re.search(pattern, name)), "")
        if part:
            held.setdefault(part, []).append(i)

    def change(old, new, indices) -> float:
        gaps = [np.float64(new[i][1]) - np.float64(old[i][1]) for i in indices]
        total = sum(np.abs(gap).sum() for gap in gaps)
        return float(total / sum(gap.size for gap in gaps))

    return {
        part: np.array([change(*pair, held[part]) for pair in itertools.pairwise(flat)])
        for part in parts
        if part in held
    }
