"""Gated linear attention: of sequences, and in both directions over feature maps."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, SplitDense
from normjax.core.moments import at_least_float32
from normjax.core.registry import Part
from normjax.mixers import decay
from normjax.mixers.base import (
    MIXERS,
    QK_NORM,
    merge_heads,
    normalized_heads,
    split_heads,
    tokens_of,
)
from normjax.mixers.cores import depthwise_layer, only_valid
from normjax.mixers.sequence import RecurrentMixer, only_tokens

_xavier = nn.initializers.variance_scaling(2.0**-5, "fan_avg", "uniform")


class LogDecay(nn.Module):
    """logsigmoid(W2 W1 x + b) / 16: decays close to 1, from few channels.

    Attributes:
      features: decays a position.  rank: channels between W1 and W2.
      normalizer: the 16.
      dtype, param_dtype, kernel_init: as in nn.Dense.
    """

    features: int
    rank: int = 16
    normalizer: float = 16.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = _xavier

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features], negative, in at least float32."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"kernel_init": self.kernel_init, **types}
        x = Dense(self.rank, use_bias=False, name="down", **dense)(x)
        x = Dense(self.features, name="up", **dense)(x)
        return jax.nn.log_sigmoid(at_least_float32(x)) / self.normalizer


@MIXERS.register("gated_linear", "seq", "grid", "causal", "decode", "mask")
class GatedLinearAttention(RecurrentMixer):
    """Gated linear attention, GLA (Yang et al., 2024). Causal.

        S_t = diag(d_t) S_{t-1} + k_t v_t^T     o_t = S_t^T q_t / sqrt(K)
        y = proj(RMSNorm(o) * silu(W_g x))      d = sigmoid(W2 W1 x + b)**(1 / 16)

    with one state per head, the root mean square per head (epsilon 1e-5) and no bias
    but b. O(L (C + V) D) multiply-adds in blocks of C = 64; states and decays in at
    least float32.

    Attributes: those of SequenceMixer and
      expand_k, expand_v: widths of the keys and values as parts of D.
      gate_rank: channels between W1 and W2.
      epsilon: of the norm.
    """

    num_heads: int = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    epsilon: float = 1e-5
    kernel_init: Initializer = _xavier

    reads: ClassVar[tuple[str, ...]] = ("qk", "vg", "log_decay/down")

    def _mix(self, x, mask, positions, train, decode):
        width, dense = self._width(x), {"use_bias": False, **self._dense()}
        keys, values = round(width * self.expand_k), round(width * self.expand_v)
        q, k = self._split(*SplitDense(2, keys, name="qk", **dense)(x))
        v, gate = self._split(*SplitDense(2, values, name="vg", **dense)(x))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        make = LogDecay(keys, self.gate_rank, name="log_decay", **self._dense())
        (log_decay,) = self._split(make(x))
        log_decay = decay.within_documents(log_decay, x.shape[:2], mask, positions)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        o = self._recur(q * q.shape[-1] ** -0.5, k, v, log_decay, decode)
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        return (norm(o) * jax.nn.silu(at_least_float32(gate))).astype(v.dtype)


@MIXERS.register("vig", "grid", "mask")
class BidirectionalGatedLinearAttention(nn.Module):
    """Gated linear attention of maps in both directions (ViG; Liao et al., 2024).

    Everything is made of l = silu(3x3 depthwise convolution of x). Two gated linear
    attentions with the same queries, keys and values and their own decays run over the
    rows forwards and backwards; every position counts itself in both:

        o = (GLA(l) + reversed GLA(l)) / 2      s = sigmoid(W_s l + b)
        y = proj(s * RMSNorm(o) + (1 - s) * RMSNorm(l)), norms per head

    O(L (C + V) D) multiply-adds in blocks of C = 64; states and decays in at least
    float32.

    Attributes:
      num_heads: heads.
      expand_k: width of the keys as a part of D, that of x.
      gate_rank: channels between the two layers that make the decays.
      conv_bias: bias of the convolution.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      epsilon: of the norms.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    expand_k: float = 0.5
    gate_rank: int = 16
    conv_bias: bool = False
    qk_norm: Callable[..., nn.Module] | None = None
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = _xavier

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
        features, types = x.shape[-1], self._types()
        dense = {"kernel_init": self.kernel_init, **types}
        plain, keys = {"use_bias": False, **dense}, round(features * self.expand_k)
        local = depthwise_layer(
            self, "conv", only_valid(x, mask), (3, 3, features), self.conv_bias
        )
        local = tokens_of(jax.nn.silu(local))
        mask = None if mask is None else mask.reshape(local.shape[:2])
        q, k = SplitDense(2, keys, name="qk", **plain)(local)
        v = Dense(features, name="v", **plain)(local)
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
        return Dense(features, name="proj", **plain)(o).reshape(x.shape)

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}
