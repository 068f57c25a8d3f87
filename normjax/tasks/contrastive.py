"""Contrastive losses of batches whose activations do not fit into memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.spmd import match_varying


def contrastive_loss(
    first: jax.Array, second: jax.Array, log_temperature: jax.Array | float
) -> jax.Array:
    """Mean of the cross entropies of rows and columns of S, whose diagonal is right.

    S = a b^T / exp(log_temperature) (CLIP; Radford et al., 2021; BASIC; Pham et al.,
    2021). In at least float32.

    Args:
      first, second: a and b, [B, D] with rows of norm 1; row i of one belongs to row i
        of the other.
      log_temperature: scalar.

    Returns:
      a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> pairs = jnp.eye(2)
      >>> print(tasks.contrastive_loss(pairs, pairs, 0.0).round(4))  # log(1 + 1 / e)
      0.3133
    """
    first, second = at_least_float32(first), at_least_float32(second)
    wide = jnp.promote_types(first.dtype, second.dtype)
    scores = first.astype(wide) @ second.astype(wide).T
    scores = scores / jnp.exp(jnp.asarray(log_temperature, wide))
    right = jnp.diagonal(scores)
    rows, columns = (jax.nn.logsumexp(scores, axis) for axis in (1, 0))
    return jnp.mean((rows + columns) / 2 - right)


def cached_gradients(
    encode: Callable[..., Any],
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    inputs: Any,
    *,
    chunk_size: int,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, Any]:
    """The loss of a whole batch and its gradient, in the memory of a chunk.

    GradCache (Gao et al., 2021): all chunks are encoded, the loss of all embeddings
    gives the gradients of these, and each chunk is encoded again to pull its part of
    them back: the gradient of loss(params, encode(params, inputs)) for one forward pass
    more, as long as no layer mixes examples and `encode` writes no state.

    Args:
      encode: (params, inputs of n examples) -> a tree of arrays [n, ...]; with a `key`
        (params, inputs, key of the chunk).
      loss: (params, embeddings of all examples) -> a scalar.
      params: a tree of arrays.  inputs: a tree of arrays [B, ...].
      chunk_size: examples of a chunk; the last one has what is left.
      key: of dropout, of which a chunk has the same in both passes; None: none.
      axis_name: of devices, inside of shard_map, each with a part of the batch, whose
        gradients are added up, not averaged; None: all examples are here.

    Returns:
      The loss, and the gradient, a tree as `params`.

    Raises:
      UserError: a chunk below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import tasks
      >>> encode = lambda params, x: jnp.tanh(x @ params)
      >>> loss = lambda params, z: jnp.square(z.sum())  # of all examples at once
      >>> x, params = jnp.linspace(0.0, 1.0, 10).reshape(5, 2), jnp.ones((2, 3))
      >>> _, gradient = tasks.cached_gradients(encode, loss, params, x, chunk_size=2)
      >>> whole = jax.grad(lambda p: loss(p, encode(p, x)))(params)
      >>> bool(jnp.allclose(gradient, whole, rtol=1e-5))
      True
    """
    if chunk_size < 1:
        raise UserError(f"a chunk of {chunk_size} examples: at least 1")
    params, inputs = match_varying(params, inputs)  # gradients of this device alone
    parts = _parts(inputs, chunk_size)

    def encoded(params, chunk, number):
        own = () if key is None else (jax.random.fold_in(key, number),)
        return encode(params, chunk, *own)

    value, gradient, cached = _of_all(encoded, loss, params, parts, axis_name)
    chunks = zip(parts, _parts(cached, chunk_size), strict=True)
    zeros, _ = match_varying(jax.tree.map(jnp.zeros_like, params), inputs)
    pulled = _pulled(encoded, params, zeros, chunks, axis_name)
    return value, jax.tree.map(jnp.add, gradient, pulled)


def _pulled(encoded, params, total, chunks, axis_name) -> Any:
    """`total`, and the gradients that all chunks pull back."""

    def backward(total, chunk):
        *chunk, cotangent = chunk
        _, pull = jax.vjp(lambda p: encoded(p, *chunk), params)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    for part, (cotangent, _) in chunks:
        total, _ = jax.lax.scan(backward, total, (*part, cotangent))
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _of_all(encoded, loss, params, parts, axis_name) -> tuple[Any, Any, Any]:
    """The loss of all embeddings, its gradient by `params` and by those made here."""

    def forward(_, chunk):
        return None, encoded(params, *chunk)

    each = [jax.lax.scan(forward, None, part)[1] for part in parts]
    own = jax.tree.map(_rows, *each)
    if axis_name is None:
        value, gradients = jax.value_and_grad(loss, (0, 1))(params, own)
        return value, *gradients
    everywhere = jax.lax.all_gather(own, axis_name, tiled=True)
    value, (gradient, cached) = jax.value_and_grad(loss, (0, 1))(params, everywhere)
    device = jax.lax.axis_index(axis_name)

    def here(t, own):
        return jax.lax.dynamic_slice_in_dim(t, device * len(own), len(own))

    value, gradient = jax.lax.pmean((value, gradient), axis_name)  # alike on all
    return value, gradient, jax.tree.map(here, cached, own)


def _parts(tree: Any, size: int) -> list[tuple[Any, jax.Array]]:
    """The whole chunks [M, size, ...] with their numbers, then what is left."""
    count = len(jax.tree.leaves(tree)[0])
    whole, found = count // size, []
    for start, chunks, length in ((0, whole, size), (whole * size, 1, count % size)):
        if chunks and length:
            numbers = jnp.arange(chunks) + start // size
            part = jax.tree.map(
                lambda t, a=start, m=chunks, n=length: t[a : a + m * n].reshape(
                    m, n, *t.shape[1:]
                ),
                tree,
            )
            found.append((part, numbers))
    return found


def _rows(*chunks: jax.Array) -> jax.Array:
    """Arrays [M, n, ...] as one [B, ...]."""
    return jnp.concatenate([t.reshape(-1, *t.shape[2:]) for t in chunks])
