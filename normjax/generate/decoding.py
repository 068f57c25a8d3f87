"""Text token by token from a model with a cache."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.collections import CACHE
from normjax.core.errors import UserError
from normjax.generate.sampling import check, sample
from normjax.mixers.cache import padding_first

Cache = dict[str, Any]


def init_cache(
    model: nn.Module, variables: Mapping[str, Any], batch_size: int, length: int
) -> Cache:
    """The empty collection `cache` of rows of up to `length` tokens.

    Args:
      model: called `model(tokens, decode=True)`, such as `models.Decoder`.
      variables: without a cache.  batch_size: rows.  length: tokens of a row at most.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import generate, models
      >>> model = models.build("decoder", vocab_size=11, dim=8, depth=1, num_heads=2)
      >>> prompts = jnp.array([[10, 3, 1, 4]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), prompts)
      >>> cache = generate.init_cache(model, variables, batch_size=2, length=16)
      >>> sorted({leaf.shape for leaf in jax.tree.leaves(cache)})
      [(2,), (2, 16, 2, 4)]
    """

    def first(variables, tokens):
        return model.apply(variables, tokens, decode=True, mutable=[CACHE])

    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    _, state = jax.eval_shape(first, variables, tokens)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state.get(CACHE, {}))


def cache_bytes(cache: Cache) -> int:
    """Bytes of a cache, or of its shapes.

    Args:
      cache: as of `init_cache`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import generate
      >>> cache = {"keys": jnp.zeros((2, 16, 4)), "length": jnp.zeros((), jnp.int32)}
      >>> generate.cache_bytes(cache)  # 4 * 128 + 4
      516
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def extend(
    model: nn.Module,
    variables: Mapping[str, Any],
    cache: Cache,
    tokens: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """N more tokens of every row: (logits of the next ones [B, N, V], new cache).

    Args:
      model, variables: as given to `init_cache`.
      cache: of `init_cache` or of the call before.
      tokens: int [B, N].
      mask: bool [B, N]; False is padding, wherever it stands.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import generate, models
      >>> model = models.build("decoder", vocab_size=11, dim=8, depth=1, num_heads=2)
      >>> prompts = jnp.array([[10, 3, 1, 4]])
      >>> variables = model.init(jax.random.key(0), prompts)
      >>> cache = generate.init_cache(model, variables, batch_size=1, length=16)
      >>> extend = jax.jit(generate.extend, static_argnums=0)
      >>> logits, cache = extend(model, variables, cache, prompts)
      >>> logits.shape, int(logits[0, -1].argmax()) < 11  # the next token
      ((1, 4, 11), True)
    """
    result: Any = model.apply(
        {**variables, CACHE: cache}, tokens, mask=mask, decode=True, mutable=[CACHE]
    )
    logits, state = result
    return logits, state.get(CACHE, {})


def generate(
    model: nn.Module,
    variables: Mapping[str, Any],
    tokens: jax.Array,
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_token: int | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Up to `length` new tokens of every row: its prompt in one call, then one by one.

    Made for `jax.jit`: no Python between the tokens, one program for all of them.

    Args:
      model, variables: as of `init_cache`.  tokens: int [B, P], the prompts, P >= 1.
      length: at least 1.  key: of jax.random; the same key gives the same tokens.
      temperature, top_k, top_p: of `sample`; numbers, not arrays.
      end_token: a row ends behind it; None: no row ends early.
      mask: bool [B, P]; False is padding, wherever it stands; every row has a token.

    Returns:
      int32 [B, length]; behind the end of a row stands `end_token`.

    Raises:
      UserError: an empty prompt, a length below 1, or as `sample`.

    Example:
      >>> import jax
      >>> from normjax import generate, models
      >>> model = models.build("decoder", vocab_size=11, dim=8, depth=1, num_heads=2)
      >>> prompts = jax.numpy.array([[10, 3, 1, 4]])
      >>> variables = model.init(jax.random.key(0), prompts)
      >>> run = jax.jit(generate.generate, static_argnums=0, static_argnames="length")
      >>> run(model, variables, prompts, length=3, key=jax.random.key(1)).shape
      (1, 3)
    """
    check(temperature, top_k, top_p)
    token, cache = _prompted(model, variables, tokens, length, mask)
    last = 0 if end_token is None else end_token

    def unfinished(state):
        return (state[0] < length) & ~jnp.all(state[3])

    def advance(state):
        step, token, cache, ended, text = state
        logits, cache = extend(model, variables, cache, token[:, None])
        own = jax.random.fold_in(key, step)
        token = sample(logits[:, 0], own, temperature, top_k, top_p)
        token = jnp.where(ended, last, token)
        if end_token is not None:
            ended = ended | (token == end_token)
        return step + 1, token, cache, ended, text.at[:, step].set(token)

    text = jnp.full((len(tokens), length), last, jnp.int32)
    state = (0, token, cache, jnp.zeros(len(tokens), bool), text)
    return jax.lax.while_loop(unfinished, advance, state)[-1]


def _prompted(
    model: nn.Module,
    variables: Mapping[str, Any],
    tokens: jax.Array,
    length: int,
    mask: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """The last token of every prompt [B], and the cache of those before."""
    rows, prompt = tokens.shape
    if length < 1 or prompt < 1:
        raise UserError(f"{prompt} tokens of prompt, {length} new: at least 1 of each")
    tokens = padding_first(tokens.astype(jnp.int32), mask)
    mask = None if mask is None else padding_first(mask, mask)
    cache = init_cache(model, variables, rows, prompt + length - 1)
    if prompt > 1:  # without the last, so that nobody needs these logits
        before = None if mask is None else mask[:, :-1]
        _, cache = extend(model, variables, cache, tokens[:, :-1], before)
    return tokens[:, -1], cache
