"""Linear attention: sums over keys in the place of weights."""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT, einsum, precision_of
from normjax.core.moments import at_least_float32


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

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> q = jnp.array([[1.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)  # [B, L, H, K]
      >>> k = jnp.array([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
      >>> v = jnp.array([2.0, 4.0]).reshape(1, 2, 1, 1)
      >>> print(mixers.linear_attention(q, k, v, epsilon=0.0).ravel())
      [2. 3.]
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
