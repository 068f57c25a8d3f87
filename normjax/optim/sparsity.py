"""ProSparse: hidden units become sparse in stages."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError


def prosparse_factor(
    step: Any, *, start: int, ends: Sequence[int], peaks: Sequence[float]
) -> jax.Array:
    """The factor of ProSparse's L1 penalty at a step (Song et al., 2025).

    0 until `start`; peaks[0] until ends[0]; then in each stage from the last peak to
    the next by half a sine:

        p_{i-1} + (sin(-pi/2 + pi x) + 1) / 2 (p_i - p_{i-1})

    at share x of the stage; after the last, the last peak.

    Args:
      step: 1, 2, ...
      start: the last step of the model with ReLU and no penalty.
      ends: the last step of each stage.  peaks: the factor there.

    Raises:
      UserError: other numbers of ends and peaks, or ends that do not rise.

    Example:
      >>> from normjax.optim import prosparse_factor
      >>> stages = {"start": 10, "ends": (20, 40), "peaks": (0.5, 1.5)}
      >>> [float(prosparse_factor(step, **stages)) for step in (10, 20, 30, 40, 99)]
      [0.0, 0.5, 1.0, 1.5, 1.5]
    """
    if len(ends) != len(peaks) or not ends:
        raise UserError(f"{len(ends)} ends of stages and {len(peaks)} peaks")
    if any(a >= b for a, b in itertools.pairwise([start, *ends])):
        raise UserError(f"the ends of stages {tuple(ends)} must rise from {start}")
    t = jnp.asarray(step, jnp.result_type(float))
    factor = jnp.where(t > start, peaks[0], 0.0)
    stages = zip(itertools.pairwise(ends), itertools.pairwise(peaks), strict=True)
    for (begin, end), (low, high) in stages:
        x = jnp.clip((t - begin) / (end - begin), 0, 1)
        wave = (jnp.sin(math.pi * (x - 0.5)) + 1) / 2
        factor = jnp.where(t > begin, low + wave * (high - low), factor)
    return factor


def sparsity_penalty(x: jax.Array) -> jax.Array:
    """The mean over tokens of the L1 norm of a gated hidden vector.

    Args:
      x: [..., hidden].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import sparsity_penalty
      >>> print(sparsity_penalty(jnp.array([[1.0, -2.0], [0.0, 1.0]])))
      2.0
    """
    return jnp.mean(jnp.sum(jnp.abs(x), axis=-1))
