"""What mixers remember from call to call in generation: the Flax collection `cache`.

A mixer called with `decode=True` continues the rows of the calls before by N >= 1
tokens each, and `mutable=["cache"]` gives the cache of the next call:

    y, cache = mixer.apply({**variables, **cache}, x, decode=True, mutable=["cache"])

Without a cache it begins with an empty one for rows of N tokens; an empty one is all
zeros, so that one of the wanted length comes from `jax.eval_shape` alone. What does not
fit is lost without notice: a jitted call cannot count. Tokens have their true position
in the row: padding (mask False), which stands in front of the first token of a row, has
none and leaves nothing behind.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.collections import CACHE
from normjax.core.errors import UserError


def variable(
    module: nn.Module, name: str, shape: tuple[int, ...], dtype: Dtype
) -> nn.Variable:
    """The cached array `name` of a module, zeros at first."""
    return module.variable(CACHE, name, jnp.zeros, shape, dtype)


def next_positions(
    module: nn.Module,
    shape: tuple[int, ...],
    mask: jax.Array | None,
    positions: jax.Array | None,
) -> jax.Array:
    """int32 [B, N], the positions of new tokens; the module counts on.

    That of padding is the one of the last token before it, -1 if there is none.

    Args:
      shape: (B, N).  mask: bool [B, N] or None.
      positions: those that the caller gave.

    Raises:
      UserError: there are any, for a row that grows is one document.
    """
    if positions is not None:
        raise UserError("decode counts the positions of tokens itself: give none")
    count = variable(module, "count", shape[:1], jnp.int32)
    tokens = jnp.ones(shape, bool) if mask is None else mask
    places = count.value[:, None] + jnp.cumsum(tokens, 1, dtype=jnp.int32) - 1
    count.value = places[:, -1] + 1
    return places


def by_position(
    module: nn.Module, name: str, new: jax.Array, positions: jax.Array
) -> jax.Array:
    """[B, M, ...], what each of the M positions of a row has left so far, or 0.

    Args:
      new: [B, N, ...], what `positions` [B, N] leave now; 0 at padding.
    """
    kept = variable(module, name, new.shape, new.dtype)
    rows = jnp.arange(len(new))[:, None]
    # Padding is at -1: its zeros go to the last place, where no token can be yet.
    kept.value = kept.value.at[rows, positions].set(new, mode="drop")
    return kept.value


def earlier(positions: jax.Array, length: int) -> jax.Array:
    """bool [B, 1, N, M]: which of M = `length` positions tokens [B, N] may see."""
    return jnp.arange(length).reshape(1, 1, 1, -1) <= positions[:, None, :, None]


def with_last(module: nn.Module, name: str, new: jax.Array, size: int) -> jax.Array:
    """[B, S + N, ...]: the S entries before the new ones, and those [B, N, ...].

    The last S of the result stay. S is `size` at the first call.
    """
    kept = variable(module, name, (len(new), size, *new.shape[2:]), new.dtype)
    joined = jnp.concatenate((kept.value, new), 1)
    kept.value = joined[:, new.shape[1] :]
    return joined
