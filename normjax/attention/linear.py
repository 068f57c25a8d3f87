"""Linear attention for feature maps."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.attention.base import (
    MIXERS,
    SplitDense,
    linear_attention,
    merge_heads,
    split_heads,
    tokens_of,
    trunc_normal,
)
from normjax.core.depthwise import depthwise_conv


@MIXERS.register("sla", "grid")
class SimplifiedLinearAttention(nn.Module):
    """Simplified linear attention (SLA) of SLAB (Guo et al., 2024).

    With q' = relu(q), k' = relu(k + P) and P a learned table over positions,

        o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads, then a projection. No scale. O(L K D) multiply-adds with K = D / num_heads;
    sums in at least float32.

    Attributes:
      num_heads: heads; each has K channels.
      qkv_features: width of queries, keys and values; None for that of x.
      qkv_bias: bias of the joint query-key-value projection.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qkv_bias: bool = True
    kernel_size: int = 5
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("qkv",)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. The table P fixes H and W at initialisation.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: unused: one rule.
        """
        del train
        dense = {
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        width = self.qkv_features or x.shape[-1]
        project = SplitDense(3, width, use_bias=self.qkv_bias, name="qkv", **dense)
        q, k, v = project(x)
        table = self._table((x.shape[1], x.shape[2], width))
        q, k, v, table = promote_dtype(q, k, v, table[None], dtype=self.dtype)
        q, k = jax.nn.relu(q), jax.nn.relu(k + table)
        if mask is not None:
            k, v = (jnp.where(mask[..., None], t, 0) for t in (k, v))
        heads = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        o = merge_heads(linear_attention(*heads, epsilon=self.epsilon))
        o = o.reshape(v.shape) + self._convolve(v)
        return nn.Dense(x.shape[-1], name="proj", **dense)(o.astype(q.dtype))

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}

    def _table(self, shape: tuple[int, int, int]) -> jax.Array:
        stored = self.get_variable("params", "positional_encoding")
        if stored is not None and stored.shape != shape:
            raise ValueError(
                f"simplified linear attention was initialised for a {stored.shape[:2]} "
                f"grid and got {shape[:2]}: its table of positions has a fixed size"
            )
        zeros = nn.initializers.zeros
        return self.param("positional_encoding", zeros, shape, self.param_dtype)

    def _convolve(self, v: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, v.shape[-1] // self.num_heads
        bound = 1.0 / size  # PyTorch's default for fan-in size**2

        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param(
            "dwc_kernel", init, (size, size, channels), self.param_dtype
        )
        bias = self.param("dwc_bias", init, (channels,), self.param_dtype)
        v, kernel, bias = promote_dtype(v, kernel, bias, dtype=self.dtype)
        bias = jnp.tile(bias, self.num_heads)
        return depthwise_conv(v, kernel) + bias.reshape(1, 1, 1, -1)
