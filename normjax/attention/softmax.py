"""Softmax attention."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.attention.base import (
    MIXERS,
    SplitDense,
    merge_heads,
    softmax_attention,
    split_heads,
    tokens_of,
    trunc_normal,
)


@MIXERS.register("softmax", "seq", "grid", "causal", "mask")
class SoftmaxAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v per head, then a projection (Vaswani et al., 2017).

    O(L**2 D) multiply-adds. Softmax in float32.

    Attributes:
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width of queries, keys and values; None for that of x.
      qkv_bias: bias of the joint query-key-value projection.
      causal: no position sees a later one.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qkv_bias: bool = True
    causal: bool = False
    qk_norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("qkv",)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, D] -> same.

        Args:
          mask: bool [B, L] or [B, H, W]; False positions are not attended to.
          train: passed to `qk_norm`.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"kernel_init": self.kernel_init, **types}
        shape, x = x.shape, tokens_of(x)
        width = self.qkv_features or x.shape[-1]
        project = SplitDense(3, width, use_bias=self.qkv_bias, name="qkv", **dense)
        q, k, v = (split_heads(t, self.num_heads) for t in project(x))
        mask = None if mask is None else mask.reshape(x.shape[:2])
        if self.qk_norm is not None:
            valid = None if mask is None else mask[:, :, None, None]
            q = self.qk_norm(name="q_norm", **types)(q, mask=valid, train=train)
            k = self.qk_norm(name="k_norm", **types)(k, mask=valid, train=train)
        visible = None
        if mask is not None:
            visible = mask[:, None, None, :]
            # A weight of 0 does not keep NaN or infinity of padding out of the sum.
            k, v = (jnp.where(mask[:, :, None, None], t, 0) for t in (k, v))
        o = softmax_attention(q, k, v, mask=visible, causal=self.causal)
        o = nn.Dense(x.shape[-1], name="proj", **dense)(merge_heads(o))
        return o.reshape(shape)

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}
