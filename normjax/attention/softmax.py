"""Softmax attention, alone and with a factor or bias by the distance of the tokens."""

from collections.abc import Callable

import flax.linen as nn

from normjax.attention.base import MIXERS, softmax_attention
from normjax.attention.sequence import PairwiseMixer


@MIXERS.register("softmax", "seq", "grid", "causal", "mask")
class SoftmaxAttention(PairwiseMixer):
    """softmax(q k^T / sqrt(K)) v per head, then a projection (Vaswani et al., 2017).

    O(L**2 D) multiply-adds. Softmax in float32.

    Attributes: those of PairwiseMixer and
      distance: factory of what distance does to the scores, one of
        `attention.DISTANCES` ("alibi", "kerple_log", ...), or None.
    """

    distance: Callable[..., nn.Module] | None = None

    def _attend(self, q, k, v, context):
        gain = bias = None
        if self.distance is not None:
            make, size = self.distance, (q.shape[1], k.shape[1])
            gain, bias = make(
                num_heads=self.num_heads, name="distance", param_dtype=self.param_dtype
            )(*size)
        return softmax_attention(
            q, k, v, bias=bias, gain=gain, mask=context.visible, causal=self.causal
        )
