"""What the mixers share: their registry, head splitting, the linear-attention sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.registry import Registry

MIXERS = Registry("mixer")

trunc_normal = nn.initializers.truncated_normal(0.02)


def tokens_of(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, L, C] with the positions in row-major order."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class SplitDense(nn.Module):
    """One Dense layer whose output comes in parts: x W_i + b_i, W = [W_1 | W_2 ...].

    Variables are those of `nn.Dense(parts * features)`. Multiplying part by part
    instead of splitting the product saves the copies on CPU; XLA's GPU backend merges
    the products again where that is faster.

    Attributes:
      parts, features: number and width of the outputs.
      use_bias, kernel_init, dtype, param_dtype: as in nn.Dense.
    """

    parts: int
    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """x: [..., C] -> `parts` arrays [..., features]."""
        width = self.parts * self.features
        shape = (x.shape[-1], width)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (width,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        outputs = [x @ part for part in jnp.split(kernel, self.parts, axis=-1)]
        if bias is not None:
            wide = bias.reshape((1,) * (x.ndim - 1) + (width,))
            parts = jnp.split(wide, self.parts, axis=-1)
            outputs = [y + b for y, b in zip(outputs, parts, strict=True)]
        return tuple(outputs)


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, D] -> [B, L, H, K] with D = H * K.

    Raises:
      UserError: D is no multiple of `num_heads`.
    """
    if x.shape[-1] % num_heads:
        raise UserError(f"width {x.shape[-1]} does not split into {num_heads} heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, L, H, K] -> [B, L, H * K]."""
    return x.reshape(*x.shape[:-2], -1)


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """o_i = (q_i . sum_j k_j v_j^T) / (q_i . sum_j k_j + epsilon), per head.

    q and k are features that are not negative (Katharopoulos et al., 2020). Sums are
    accumulated in at least float32. Of q (k^T v) and (q k^T) v the cheaper order is
    taken: O(N K V + M K V) or O(N M (K + V)) multiply-adds a head.

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      epsilon: added to the denominator, so that an all-zero query gives 0.

    Returns:
      [B, N, H, V] in at least float32.
    """
    # Heads first: one transposition here, fused with what made q, k and v, where the
    # products would each make their own.
    q, k, v = (jnp.swapaxes(at_least_float32(t), 1, 2) for t in (q, k, v))
    n, m, key, value = q.shape[2], k.shape[2], q.shape[-1], v.shape[-1]
    if n * m * (key + value) > key * value * (n + m):
        o = jnp.einsum("bhnk,bhkv->bhnv", q, jnp.einsum("bhmk,bhmv->bhkv", k, v))
        normalizer = jnp.einsum("bhnk,bhk->bhn", q, jnp.sum(k, axis=2))
    else:
        weights = jnp.einsum("bhnk,bhmk->bhnm", q, k)
        o = jnp.einsum("bhnm,bhmv->bhnv", weights, v)
        normalizer = jnp.sum(weights, axis=-1)
    return jnp.swapaxes(o / (normalizer + epsilon)[..., None], 1, 2)
