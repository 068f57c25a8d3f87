"""Attention between channels instead of positions."""

import jax

from normjax.core.accumulate import einsum
from normjax.core.moments import at_least_float32


def channel_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A q with A = softmax(k^T v / sqrt(K)) per head (DaViT; Ding et al., 2022).

        A_ij = softmax_j(sum_n k_ni v_nj / sqrt(K))        o_ni = sum_j A_ij q_nj

    O(L K D) multiply-adds with D = H K; softmax and sums in at least float32.

    Args:
      q, k, v: [B, L, H, K]; keys that are 0 do not count.

    Returns:
      [B, L, H, K] in at least float32.
    """
    scores = einsum("bnhi,bnhj->bhij", k, v) * k.shape[-1] ** -0.5
    weights = jax.nn.softmax(at_least_float32(scores)).astype(q.dtype)
    return einsum("bhij,bnhj->bnhi", weights, q)
