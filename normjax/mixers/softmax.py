"""Softmax attention, alone and with a factor or bias by the distance of the tokens."""

from collections.abc import Mapping
from typing import ClassVar

from normjax.core.registry import Part, Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.distance import DISTANCES
from normjax.mixers.sequence import LinearlyProjected


@MIXERS.register("softmax", "seq", "grid", "causal", "decode", "memory", "mask")
class SoftmaxAttention(LinearlyProjected):
    """softmax(q k^T / sqrt(K)) v per head, then a projection (Vaswani et al., 2017).

    O(L**2 D) multiply-adds. Softmax in float32.

    Attributes: those of LinearlyProjected and
      distance: what the distance of tokens does to their scores: a key of
        `attention.DISTANCES` ("alibi", "kerple_log", ...), a dict with `name` and
        arguments, or a factory; None for nothing.
    """

    distance: Spec | None = None

    parts: ClassVar[Mapping[str, Part]] = {
        "distance": Part(DISTANCES, given=frozenset({"num_heads"})),
    }

    def _attend(self, q, k, v, context):
        gain = bias = None
        if self.distance is not None:
            own = {"num_heads": self.num_heads, "param_dtype": self.param_dtype}
            make = DISTANCES.factory(self.distance, **own)
            distance = make(name="distance")
            gain, bias = distance(q.shape[1], k.shape[1], context.positions)
        return self._softmax(q, k, v, context, bias, gain)
