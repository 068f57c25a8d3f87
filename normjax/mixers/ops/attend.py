"""Attention by pairs of tokens: softmax and rectified weights, and their entropy."""

import functools

import jax
import jax.numpy as jnp

from normjax.core.broadcast import repeat_over_batch
from normjax.core.tracing import traced_once
from normjax.mixers.ops.heads import (
    as_many_heads,
    merge_heads,
    split_heads,
    tokens_of,
)
from normjax.mixers.ops.masks import only_valid


def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    gain: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """softmax(gain * scale * q k^T + bias) v per head (Vaswani et al., 2017).

    Logits, softmax and sums in at least float32; what becomes of float32 operands of
    the two products before, `jax.default_matmul_precision` says. Accelerators run
    `jax.nn.dot_product_attention`; on CPU, where its layout costs transpositions and
    the weights are worth dividing after the product only, ours takes half its time.

    Args:
      q: [B, N, H, K].  k: [B, M, G, K].  v: [B, M, G, V]; of G = H heads, or of a
        divisor of H, each for H / G heads of the queries.
      bias, gain: added to and multiplied into the logits, broadcastable to
        [B, H, N, M]; None for 0 and 1.
      mask: bool, broadcastable to [B, H, N, M]; False hides a key from a query. A query
        that sees no key gets the mean of all values.
      causal: query i sees the keys up to i.
      scale: of the logits; None for 1 / sqrt(K).

    Returns:
      [B, N, H, V] in the dtype of q.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> q = k = jnp.zeros((1, 3, 1, 2))  # [B, L, H, K]: all keys alike
      >>> v = jnp.array([2.0, 4.0, 9.0]).reshape(1, 3, 1, 1)
      >>> print(mixers.softmax_attention(q, k, v).ravel().round(3))
      [5. 5. 5.]
      >>> print(mixers.softmax_attention(q, k, v, causal=True).ravel().round(3))
      [2. 3. 5.]
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _softmax_attention(q, k, v, bias, gain, mask, causal, scale)


@traced_once("causal", "scale")
def _softmax_attention(q, k, v, bias, gain, mask, causal, scale):
    def on_cpu(q, k, v, bias, mask):
        k, v = (as_many_heads(t, q.shape[2]) for t in (k, v))
        return _attend(q, k, v, bias, gain, mask, causal, scale)

    def library(q, k, v, bias, mask):
        return jax.nn.dot_product_attention(
            q, k, v, bias, mask, is_causal=causal, scale=scale
        )

    foreign = gain is not None or v.shape[-1] != k.shape[-1]
    if q.dtype == jnp.float64 or foreign:  # the library has none of these
        return on_cpu(q, k, v, bias, mask)
    return jax.lax.platform_dependent(q, k, v, bias, mask, cpu=on_cpu, default=library)


def leaking_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rate: jax.Array | float,
    *,
    mask: jax.Array | None = None,
    renormalized: bool = False,
) -> jax.Array:
    """(M * softmax(q k^T / sqrt(K))) v, M = 1 up to a query and `rate` behind it.

    The softmax is over all keys, so that later ones count in the weights of earlier
    ones even at rate 0, and the weights of a query sum to less than 1 (iLLaMA; Wang et
    al., 2024).

    Args:
      q: [B, N, H, K].  k, v: [B, N, H, K], of the same tokens.
      rate: scalar from 0 to 1.
      mask: as of `softmax_attention`.
      renormalized: divide by the sum of M * softmax(...) instead: causal attention at
        rate 0.

    Returns:
      [B, N, H, K] in the dtype of q.
    """
    logits = _scores(q, k, None, None, mask, False, q.shape[-1] ** -0.5)
    weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    total = jnp.sum(weights, -1, keepdims=True)
    order = jnp.tri(q.shape[1], dtype=weights.dtype)[None, None]
    weights = weights * (order + (1 - order) * jnp.asarray(rate, weights.dtype))
    if renormalized:
        total = jnp.sum(weights, -1, keepdims=True)
        total = jnp.where(total > 0, total, 1)  # all before a query is padding
    weights = (weights / total).astype(v.dtype)
    wide = logits.dtype
    o = jnp.einsum("bhnm,bmhv->bnhv", weights, v, preferred_element_type=wide)
    return o.astype(q.dtype)


def softmax_over_maps(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    num_heads: int,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """`softmax_attention` of maps: q and k of width D, q [B, H, W, D] -> [B, H, W, V].

    Args:
      k: [B, H', W', D].  v: [B, H', W', V].
      bias: as of `softmax_attention`.
      mask: bool [B, H', W']; False gives no key and no value.
    """
    k, v = only_valid(k, mask), only_valid(v, mask)
    heads = (split_heads(tokens_of(t), num_heads) for t in (q, k, v))
    visible = None if mask is None else mask.reshape(q.shape[0], 1, 1, -1)
    o = softmax_attention(*heads, bias=bias, mask=visible)
    return merge_heads(o).reshape(*q.shape[:3], v.shape[-1])


def rectified_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """relu(q k^T / sqrt(K)) v per head (Zhang, Titov and Sennrich, 2021).

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      mask, causal: as of `softmax_attention`.

    Returns:
      [B, N, H, V] in at least float32.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    qh, kh, vh = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))
    einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
    scores = einsum("bhnk,bhmk->bhnm", qh, kh)
    weights = jax.nn.relu(scores * q.shape[-1] ** -0.5)
    if causal:
        order = jnp.tril(jnp.ones(weights.shape[-2:], bool))[None, None]
        mask = order if mask is None else mask & order
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    return einsum("bhnm,bhmv->bnhv", weights.astype(v.dtype), vh)


def hard_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    keep: int,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """The `keep` largest weights of softmax attention, as they are: no new sum of 1.

    (AxFormer; Nagarajan et al., 2022.) Gradients pass through the weights that are
    kept, of which there are more where some equal the smallest of them.

    Args:
      q: [B, N, H, K].  k, v: [B, M, H, K].
      keep: weights a query; of at most as many keys all are kept.
      mask, causal: as of `softmax_attention`.

    Returns:
      [B, N, H, V] in the dtype of q. Softmax and sums in at least float32.
    """
    weights = jax.nn.softmax(
        _scores(q, k, None, None, mask, causal, q.shape[-1] ** -0.5), -1
    )
    if keep < weights.shape[-1]:
        smallest = jax.lax.stop_gradient(jax.lax.top_k(weights, keep)[0][..., -1:])
        weights = jnp.where(weights >= smallest, weights, 0)
    wide, weights = weights.dtype, weights.astype(v.dtype)
    o = jnp.einsum("bhnm,bmhv->bnhv", weights, v, preferred_element_type=wide)
    return o.astype(q.dtype)


def attention_entropies(
    q: jax.Array,
    k: jax.Array,
    *,
    bias: jax.Array | None = None,
    gain: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """-sum_j p_j log p_j of the weights p of `softmax_attention`, in nats: [B, H, N].

    In at least float32. Arguments as of `softmax_attention`.
    """
    k = as_many_heads(k, q.shape[2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = _scores(q, k, bias, gain, mask, causal, scale)
    log_p = jax.nn.log_softmax(logits, -1)
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def _attend(q, k, v, bias, gain, mask, causal, scale):
    logits = _scores(q, k, bias, gain, mask, causal, scale)
    largest = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    weights, v = jnp.exp(logits - largest), jnp.swapaxes(v, 1, 2)
    dtype, total = logits.dtype, jnp.sum(weights, -1)[..., None]
    weights = weights.astype(v.dtype)
    o = jnp.einsum("bhnm,bhmv->bhnv", weights, v, preferred_element_type=dtype) / total
    return jnp.swapaxes(o, 1, 2).astype(q.dtype)


def _scores(q, k, bias, gain, mask, causal, scale):
    """[B, H, N, M] in at least float32; hidden ones are very negative."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k = jnp.swapaxes(q, 1, 2) * jnp.asarray(scale, q.dtype), jnp.swapaxes(k, 1, 2)
    logits = jnp.einsum("bhnk,bhmk->bhnm", q, k, preferred_element_type=wide)
    if gain is not None:
        logits *= gain.astype(wide)
    if bias is not None:
        bias = bias.astype(wide)
        same = bias.ndim == logits.ndim and bias.shape[0] == 1
        logits += repeat_over_batch(bias[0], logits.shape[0]) if same else bias
    if causal:
        order = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
        mask = order if mask is None else mask & order
    if mask is not None:
        # Finite, so that a row without any key has no NaN.
        logits = jnp.where(mask, logits, jnp.finfo(wide).min / 2)
    return logits
