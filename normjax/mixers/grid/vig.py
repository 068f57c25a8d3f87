"""Gated linear attention of feature maps, in both directions."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense
from normjax.core.moments import at_least_float32
from normjax.core.registry import Part
from normjax.mixers.base import MIXERS, QK_NORM
from normjax.mixers.ops import decay
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_tokens, only_valid
from normjax.mixers.steps import (
    LogDecay,
    dense_of,
    depthwise_layer,
    normalized_heads,
    xavier,
)


@MIXERS.register("vig", "grid", "mask")
class BidirectionalGatedLinearAttention(nn.Module):
    """Gated linear attention of maps in both directions (ViG; Liao et al., 2024).

    Everything is made of l = silu(3x3 depthwise convolution of x) or, in ViG-S and
    larger and in ViG-H, of the convolution itself. Two gated linear
    attentions with the same queries, keys and values and their own decays run over the
    rows forwards and backwards; every position counts itself in both:

        o = (GLA(l) + reversed GLA(l)) / 2      s = sigmoid(W_s l + b)
        y = proj(s * RMSNorm(o) + (1 - s) * RMSNorm(l)), norms per head, the sum behind
        a silu in ViG-T

    O(L (C + V) D) multiply-adds in blocks of C = 64; states and decays in at least
    float32.

    Attributes:
      num_heads: heads.
      expand_k: width of the keys as a part of D, that of x.
      gate_rank: channels between the two layers that make the decays.
      conv_bias: bias of the convolution.
      conv_activation: the silu behind it.
      output_activation: a silu before `proj`.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      epsilon: of the norms.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.BidirectionalGatedLinearAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['conv_kernel', 'local_norm', 'log_decay', 'norm', 'proj', 'qkv', 'share']
    """

    num_heads: int
    expand_k: float = 0.5
    gate_rank: int = 16
    conv_bias: bool = False
    conv_activation: bool = True
    output_activation: bool = False
    qk_norm: Callable[..., nn.Module] | None = None
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = xavier

    # The convolution reads the input first, with zeros around the map.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"qk_norm": QK_NORM}

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False is padding, which leaves no trace.
          train: passed to `qk_norm`.
        """
        features, dense = x.shape[-1], dense_of(self)
        plain, keys = {"use_bias": False, **dense}, round(features * self.expand_k)
        local = depthwise_layer(
            self, "conv", only_valid(x, mask), (3, 3, features), self.conv_bias
        )
        local = tokens_of(jax.nn.silu(local) if self.conv_activation else local)
        mask = None if mask is None else mask.reshape(local.shape[:2])
        qkv = Dense(2 * keys + features, name="qkv", **plain)(local)
        q, k, v = jnp.split(qkv, (keys, 2 * keys), -1)
        q, k, v, near = (split_heads(t, self.num_heads) for t in (q, k, v, local))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        make = LogDecay(2 * keys, self.gate_rank, name="log_decay", **dense)
        forward, backward = (
            decay.within_documents(split_heads(t, self.num_heads), q.shape[:2], mask)
            for t in jnp.split(make(local), 2, -1)
        )
        q, k, v = q * q.shape[-1] ** -0.5, only_tokens(k, mask), only_tokens(v, mask)
        o, _ = decay.chunked(q, k, v, forward)
        reverse, _ = decay.chunked(*(t[:, ::-1] for t in (q, k, v, backward)))
        share = jax.nn.sigmoid(Dense(features, name="share", **dense)(local))
        share = at_least_float32(split_heads(share, self.num_heads))
        norm = {"epsilon": self.epsilon, "param_dtype": self.param_dtype}
        o = nn.RMSNorm(name="norm", **norm)((o + reverse[:, ::-1]) / 2) * share
        near = nn.RMSNorm(name="local_norm", **norm)(at_least_float32(near))
        o = merge_heads(o + near * (1 - share)).astype(local.dtype)
        o = jax.nn.silu(o) if self.output_activation else o
        return Dense(features, name="proj", **plain)(o).reshape(x.shape)
