"""What mixers remember from call to call in generation: the Flax collection `cache`.

A mixer called with `decode=True` continues the rows of the calls before by N >= 1
tokens each, and `mutable=["cache"]` gives the cache of the next call:

    y, cache = mixer.apply({**variables, **cache}, x, decode=True, mutable=["cache"])

Without a cache it begins with an empty one for rows of N tokens; an empty one is all
zeros, so that one of the wanted length comes from `jax.eval_shape` alone. What does not
fit is lost without notice: a jitted call cannot count. Tokens have their true position
in the row: padding (mask False), wherever it stands, has none and leaves nothing
behind.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.collections import CACHE
from normjax.core.errors import UserError
from normjax.mixers.ops import decay, local
from normjax.mixers.ops.masks import only_tokens, visible_keys


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


def positions_of(
    module: nn.Module,
    rows: jax.Array,
    mask: jax.Array | None,
    positions: jax.Array | None,
    decode: bool,
) -> jax.Array | None:
    """`positions` of tokens [B, N, D]; with `decode` those of `next_positions`."""
    if not decode:
        return positions
    return next_positions(module, rows.shape[:2], mask, positions)


def remember(
    module: Any,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array | None,
    mask: jax.Array | None,
    decode: bool,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Keys and values that queries meet, and which of them they see.

    Args:
      module: with `causal`: whether no query sees a later key.
      k, v: [B, M, H, K], of the tokens of this call; 0 at padding afterwards.
      positions: int [B, M], where they stand in their documents, of `positions_of`.
      mask: bool [B, M], False at padding; None for none.
      decode: the module adds them to those of the calls before.

    Returns:
      Keys, values, and the arguments `mask` and `causal` of an attention.
    """
    k, v = only_tokens(k, mask), only_tokens(v, mask)
    if not decode or positions is None:
        return k, v, {"mask": visible_keys(mask, positions), "causal": module.causal}
    k = by_position(module, "key", k, positions, mask)
    v = by_position(module, "value", v, positions, mask)
    return k, v, {"mask": earlier(positions, k.shape[1]), "causal": False}


def recur(
    module: nn.Module,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    *,
    decode: bool,
) -> jax.Array:
    """o of `decay.chunked`, with `decode` from the state of the calls before on."""
    if not decode:
        return decay.chunked(q, k, v, log_decay)[0]
    shape = (len(k), *k.shape[2:], v.shape[-1])
    state = variable(module, "state", shape, jnp.result_type(q, k, v, jnp.float32))
    o, state.value = decay.chunked(q, k, v, log_decay, state.value)
    return o


def within_window(
    module: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    positions: jax.Array | None,
    decode: bool,
) -> jax.Array:
    """`local.within_window`, with `decode` to the keys of the calls before, too.

    Args:
      module: with `window`, of which the cache holds the last keys and values.
      q: [B, N, H, K].  k, v: [B, N, G, K], 0 at padding.
      mask: bool [B, N], False at padding; None for none.
      positions: int [B, N], of `positions_of`.
    """
    if not decode or positions is None:
        return local.within_window(q, k, v, module.window, mask, positions)
    size = min(module.window, q.shape[1])
    k = with_last(module, "key", k, size, mask)
    v = with_last(module, "value", v, size, mask)
    # As many of the last keys are tokens as there have been.
    known = jnp.arange(k.shape[1])[None, ::-1] <= positions[:, -1:]
    o = local.last_of_window(padding_first(q, mask), k, v, module.window, known)
    return padding_in_place(o, mask)


def by_position(
    module: nn.Module,
    name: str,
    new: jax.Array,
    positions: jax.Array,
    mask: jax.Array | None,
) -> jax.Array:
    """[B, M, ...], what each of the M positions of a row has left so far, or 0.

    Args:
      new: [B, N, ...], what the tokens at `positions` [B, N] leave now.
      mask: bool [B, N], False at padding, which leaves nothing; None for none.
    """
    kept = variable(module, name, new.shape, new.dtype)
    rows = jnp.arange(len(new))[:, None]
    if mask is not None:
        positions = jnp.where(mask, positions, kept.value.shape[1])
    kept.value = kept.value.at[rows, positions].set(new, mode="drop")
    return kept.value


def earlier(positions: jax.Array, length: int) -> jax.Array:
    """bool [B, 1, N, M]: which of M = `length` positions tokens [B, N] may see."""
    return jnp.arange(length).reshape(1, 1, 1, -1) <= positions[:, None, :, None]


def with_last(
    module: nn.Module, name: str, new: jax.Array, size: int, mask: jax.Array | None
) -> jax.Array:
    """[B, S + N, ...]: padding, the S entries before the new ones, the new ones.

    The last S of the result stay. S is `size` at the first call.

    Args:
      new: [B, N, ...].
      mask: bool [B, N], False at padding, which goes to the front; None for none.
    """
    kept = variable(module, name, (len(new), size, *new.shape[2:]), new.dtype)
    before = jnp.ones((len(new), kept.value.shape[1]), bool)
    joined = jnp.concatenate((kept.value, new), 1)
    if mask is not None:
        joined = padding_first(joined, jnp.concatenate((before, mask), 1))
    kept.value = joined[:, new.shape[1] :]
    return joined


def padding_first(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, N, ...] with what stands at padding before the tokens; both keep their order.

    Args:
      mask: bool [B, N], False at padding; None for none.
    """
    return t if mask is None else _taken(t, jnp.argsort(mask, 1, stable=True))


def padding_in_place(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The inverse of `padding_first`."""
    if mask is None:
        return t
    return _taken(t, jnp.argsort(jnp.argsort(mask, 1, stable=True), 1))


def _taken(t: jax.Array, order: jax.Array) -> jax.Array:
    return t[jnp.arange(len(t))[:, None], order]
