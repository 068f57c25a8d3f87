"""Running statistics that follow a batch which is worked through in parts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.collections import COUNTER
from normjax.core.errors import UserError
from normjax.norms.batch_norm import unbiased


def moved_together(stats: Mapping[str, Any], moments: Mapping[str, Any]) -> Any:
    """`batch_stats` after one step of the whole batch (GPipe; Huang et al., 2019).

    mean = sum n_i mean_i / n, var = sum n_i (var_i + (mean_i - mean)**2) / n over the
    parts i, and one step of the running average.

    Args:
      stats: before the batch; counters as they are afterwards.
      moments: the collection `deferred` of all parts, on a first axis.

    Raises:
      UserError: statistics of norms that leave no moments behind.
    """
    moved: dict[tuple[str, ...], Any] = dict(flatten_dict(stats))
    told = set()
    left_behind: dict[tuple[str, ...], Any] = dict(flatten_dict(moments))
    for path, calls in left_behind.items():
        mean_of, var_of = (*path[:-1], "mean"), (*path[:-1], "var")
        told |= {mean_of, var_of}
        for call in calls:  # a norm may be called several times
            mean, var, decay = _of_all(call)
            for name, value in ((mean_of, mean), (var_of, var)):
                old = moved[name]
                new = decay * old + (1 - decay) * value
                moved[name] = jnp.where(decay < 1, new, old).astype(old.dtype)
    left = [k for k in moved if k not in told and k[-1] != COUNTER]
    if left:
        where = "/".join(left[0])
        raise UserError(f"deferred_batch_stats: {where} has no moments of a batch")
    return unflatten_dict(moved)


def _of_all(call: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance [C] of the whole batch, and the weight of the old ones."""
    count, means, variances = (call[k] for k in ("count", "mean", "var"))
    count = count.reshape(count.shape[0], -1).astype(means.dtype)  # [M, C or 1]
    total = jnp.sum(count, 0)
    share = count / jnp.maximum(total, 1)[None]
    mean = jnp.sum(share * means, 0)
    var = jnp.sum(share * (variances + jnp.square(means - mean[None])), 0)
    var = jnp.where(call["unbiased"][0], unbiased(var, total), var)
    return mean, var, jnp.where(total > 0, call["momentum"][0], 1.0)
