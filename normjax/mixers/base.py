"""What the mixers share: their registry, head splitting, the linear-attention sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT, einsum, precision_of
from normjax.core.broadcast import repeat_over_batch
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.registry import NORMS, Part, Registry, offer

MIXERS = Registry("mixer")

QK_NORM = Part(NORMS, passes=frozenset({"causal", "decode"}), needs=frozenset({"seq"}))
"""A norm of queries and keys, which it gets as a sequence [B, L, H, K]."""


def tokens_of(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, L, C] with the positions in row-major order."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[..., D] -> [..., H, K] with D = H * K.

    Raises:
      UserError: D is no multiple of `num_heads`.
    """
    if num_heads < 1 or x.shape[-1] % num_heads:
        raise UserError(f"width {x.shape[-1]} does not split into {num_heads} heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """[..., H, K] -> [..., H * K]."""
    return x.reshape(*x.shape[:-2], -1)


def normalized_heads(
    module: nn.Module,
    q: jax.Array,
    k: jax.Array,
    *,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    train: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys [..., H, K] after the `qk_norm` of a mixer, if it has one.

    Args:
      module: with `qk_norm`, `dtype` and `param_dtype`; gets `q_norm` and `k_norm`.
      mask: bool over the positions of the keys.
      query_mask: the same of the queries; None: `mask` where it fits them.
      train: passed to the norm.
    """
    if module.qk_norm is None:
        return q, k
    make = offer(module.qk_norm, dtype=module.dtype, param_dtype=module.param_dtype)
    if query_mask is None and mask is not None and mask.shape == q.shape[:-2]:
        query_mask = mask

    def normalized(t, name, mask):
        valid = None if mask is None else mask[..., None, None]
        return make(name=name)(t, mask=valid, train=train)

    return normalized(q, "q_norm", query_mask), normalized(k, "k_norm", mask)


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """o_i = (q_i . sum_j k_j v_j^T) / (q_i . sum_j k_j + epsilon), per head.

    q and k are features that are not negative (Katharopoulos et al., 2020). Products
    and sums are in at least float32; where an array is bfloat16, the sums alone. Of
    q (k^T v) and (q k^T) v the cheaper order is taken: O(N K V + M K V) or
    O(N M (K + V)) multiply-adds a head.

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      epsilon: added to the denominator, so that an all-zero query gives 0.

    Returns:
      [B, N, H, V] in at least float32.
    """
    # Heads first: one transposition here, fused with what made q, k and v, where the
    # products would each make their own.
    exact = precision_of(q, k, v) is EXACT
    dtype = jnp.result_type(q, k, v, jnp.float32) if exact else jnp.bfloat16
    q, k, v = (jnp.swapaxes(t.astype(dtype), 1, 2) for t in (q, k, v))

    def product(subscripts, *operands):
        return einsum(subscripts, *(t.astype(dtype) for t in operands))

    n, m, key, value = q.shape[2], k.shape[2], q.shape[-1], v.shape[-1]
    if n * m * (key + value) > key * value * (n + m):
        o = product("bhnk,bhkv->bhnv", q, product("bhmk,bhmv->bhkv", k, v))
        normalizer = product("bhnk,bhk->bhn", q, jnp.sum(at_least_float32(k), axis=2))
    else:
        weights = product("bhnk,bhmk->bhnm", q, k)
        o = product("bhnm,bhmv->bhnv", weights, v)
        normalizer = jnp.sum(weights, axis=-1)
    return jnp.swapaxes(o / (normalizer + epsilon)[..., None], 1, 2)


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
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      bias, gain: added to and multiplied into the logits, broadcastable to
        [B, H, N, M]; None for 0 and 1.
      mask: bool, broadcastable to [B, H, N, M]; False hides a key from a query. A query
        that sees no key gets the mean of all values.
      causal: query i sees the keys up to i.  scale: None for 1 / sqrt(K).

    Returns:
      [B, N, H, V] in the dtype of q.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def on_cpu(q, k, v, bias, mask):
        return _attend(q, k, v, bias, gain, mask, causal, scale)

    def library(q, k, v, bias, mask):
        return jax.nn.dot_product_attention(
            q, k, v, bias, mask, is_causal=causal, scale=scale
        )

    foreign = gain is not None or v.shape[-1] != k.shape[-1]
    if q.dtype == jnp.float64 or foreign:  # the library has none of these
        return on_cpu(q, k, v, bias, mask)
    return jax.lax.platform_dependent(q, k, v, bias, mask, cpu=on_cpu, default=library)


def attention_entropy(
    q: jax.Array,
    k: jax.Array,
    *,
    bias: jax.Array | None = None,
    gain: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """-sum_j p_j log p_j of the weights p of `softmax_attention`, in nats: a scalar.

    The mean over examples, heads and queries (as sigmaReparam tracks it; Zhai et al.,
    2023), in at least float32. Arguments as of `softmax_attention`.
    """
    logits = _scores(q, k, bias, gain, mask, causal, q.shape[-1] ** -0.5)
    log_p = jax.nn.log_softmax(logits, -1)
    return jnp.mean(-jnp.sum(jnp.exp(log_p) * log_p, -1))


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
