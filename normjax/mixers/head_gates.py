"""Heads as experts: how much each counts for a position (MoH; Jin et al., 2024).

Functions of the module that calls them, which has `num_heads`, `shared_heads` and
`active_heads`: parameters that they make are its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normjax.core.collections import LOSSES
from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32, masked_mean
from normjax.mixers.steps import dense_of


def gate_names(module: Any) -> tuple[str, ...]:
    """The linear layers that `head_gates` makes."""
    shared, routed = module.shared_heads, module.num_heads - module.shared_heads
    gates = {
        "routed_gate": routed > 0,
        "shared_gate": shared > 1,
        "balance": shared > 0 and routed > 0,
    }
    return tuple(name for name, used in gates.items() if used)


def head_gates(
    module: Any, x: jax.Array, mask: jax.Array | None, train: bool
) -> jax.Array:
    """[B, N, H], the weights of the heads for tokens x [B, N, D].

    Args:
      mask: bool [B, N]; False is padding, which does not count for the load.
      train: sow the load.

    Raises:
      UserError: numbers of heads that do not fit.
    """
    shared, routed = module.shared_heads, module.num_heads - module.shared_heads
    active = -(-routed // 2) if module.active_heads is None else module.active_heads
    if not 0 <= shared <= module.num_heads or not min(routed, 1) <= active <= routed:
        raise UserError(
            f"{shared} shared heads and {active} active of {routed} routed: of "
            f"{module.num_heads} heads, 0 or more are shared and at least one of the "
            "others is active"
        )

    def probabilities(name, parts):
        dense = Dense(parts, use_bias=False, name=name, **dense_of(module))
        return jax.nn.softmax(at_least_float32(dense(x)))

    parts = []
    if shared == 1:
        parts.append(jnp.ones((*x.shape[:-1], 1), jnp.float32))
    elif shared:
        parts.append(shared * probabilities("shared_gate", shared))
    if routed:
        p = probabilities("routed_gate", routed)
        kept = _largest(p, active)
        if train:
            _sow_load(module, p, kept, mask)
        chosen = p * kept
        total = jnp.sum(chosen, -1, keepdims=True)
        parts.append(active * chosen / jnp.maximum(total, jnp.finfo(p.dtype).eps))
    if len(parts) == 1:
        return parts[0]
    balance = jnp.split(2 * probabilities("balance", 2), 2, -1)
    weighed = [b * part for b, part in zip(balance, parts, strict=True)]
    return jnp.concatenate(weighed, -1)


def _sow_load(
    module: Any, p: jax.Array, kept: jax.Array, mask: jax.Array | None
) -> None:
    """The load-balancing term; kept is 0 or 1 and hands on no gradient."""
    over = {"axes": (0, 1), "mask": mask}
    (mean, _), (share, _) = (masked_mean(t, **over) for t in (p, kept))
    module.sow(LOSSES, "load", jnp.mean(mean * share) * p.shape[-1] ** 2)


def _largest(p: jax.Array, count: int) -> jax.Array:
    """1 for the `count` largest of the last axis, the first of equals; 0 for others."""
    _, index = jax.lax.top_k(jax.lax.stop_gradient(p), count)
    return jnp.sum(jax.nn.one_hot(index, p.shape[-1], dtype=p.dtype), -2)
