"""Linear attention whose heads forget at fixed rates: Lightning Attention."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.dense import Dense, SplitDense
from normjax.core.moments import at_least_float32
from normjax.mixers import decay
from normjax.mixers.base import MIXERS, merge_heads, normalized_heads
from normjax.mixers.distance import alibi_slopes
from normjax.mixers.rotary import linearized
from normjax.mixers.sequence import RecurrentMixer, only_tokens


class Decayed(RecurrentMixer):
    """Base of mixers with the recurrence S_t = exp(-s) S_{t-1} + k_t v_t^T.

    s is the slope of ALiBi for the head, less the deeper the layer: times
    1 - layer / (num_layers - 1) + 1e-5.

    Attributes: those of SequenceMixer and
      layer, num_layers: number of the layer, from 0, and how many there are.
    """

    layer: int = 0
    num_layers: int = 1

    @nn.nowrap
    def _slopes(self) -> np.ndarray:
        depth = 1 - self.layer / max(self.num_layers - 1, 1) + 1e-5
        return alibi_slopes(self.num_heads) * depth

    def _recurrence(self, q, k, v, mask, positions, decode):
        rates = -jnp.asarray(self._slopes())
        log_decay = decay.within_documents(rates, q.shape[:2], mask, positions)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        return merge_heads(self._recur(q, k, v, log_decay, decode))


@MIXERS.register("lightning", "seq", "grid", "causal", "decode", "mask")
class LightningAttention(Decayed):
    """Lightning Attention (Qin et al., 2024). Causal.

        q, k, v = silu(W x)
        o_i = sum_{j <= i} exp(-s (i - j)) (q_i . k_j) v_j
        y = proj(sigmoid(W2 W1 x) * LayerNorm(o))

    per head, without scale, denominator or bias; LayerNorm over all heads. The slope s
    is 2**(-8 h / H) for head h = 1..H (ALiBi), times 1 - layer / (num_layers - 1) +
    1e-5. O(L (C + V) D) multiply-adds in blocks of C = 64; sums in at least float32.

    Attributes: those of Decayed and
      epsilon: of the LayerNorm.
    """

    epsilon: float = 1e-5

    reads: ClassVar[tuple[str, ...]] = ("qkv", "gate_down")

    @nn.nowrap
    def _slopes(self) -> np.ndarray:
        return super()._slopes().astype(np.float32)  # as the released module holds them

    def _mix(self, x, mask, positions, train, decode):
        width, dense = self._width(x), {"use_bias": False, **self._dense()}
        heads = self._split(*SplitDense(3, width, name="qkv", **dense)(x))
        q, k = normalized_heads(self, *heads[:2], mask=mask, train=train)
        q, k, v = (jax.nn.silu(t) for t in (q, k, heads[2]))
        o = self._recurrence(q, k, v, mask, positions, decode)
        norm = {"use_fast_variance": False, "param_dtype": self.param_dtype}
        o = nn.LayerNorm(self.epsilon, name="norm", **norm)(o)
        rank = width // self.num_heads
        gate = Dense(rank, name="gate_down", **dense)(x)
        gate = Dense(width, name="gate_up", **dense)(gate)
        return (o * jax.nn.sigmoid(at_least_float32(gate))).astype(v.dtype)


@MIXERS.register("transnormer", "seq", "grid", "causal", "decode", "mask")
class TransNormerAttention(Decayed):
    """The mixer of TransNormerLLM (Qin et al., 2023). Causal.

        q, k = silu(W x)     o_i = sum_{j <= i} exp(-s (i - j)) (q_i . k_j) v_j
        y = proj(u * o / sqrt(mean(o**2) + epsilon)),   v, u = W x

    per head, without scale, denominator or bias; the mean runs over all heads. Slopes
    as of `lightning`. In the first layer queries and keys carry their position
    (LRPE: [x cos(n theta), x sin(n theta)] with learned theta). O(L (C + V) D)
    multiply-adds in blocks of C = 64; sums in at least float32.

    Attributes: those of Decayed and
      lrpe: whether queries and keys carry their position; None: in layer 0.
      epsilon: added to the mean square.
    """

    lrpe: bool | None = None
    epsilon: float = 1e-6

    reads: ClassVar[tuple[str, ...]] = ("qkvu",)

    def _mix(self, x, mask, positions, train, decode):
        width, dense = self._width(x), {"use_bias": False, **self._dense()}
        *parts, u = SplitDense(4, width, name="qkvu", **dense)(x)
        q, k, v = self._split(*parts)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        q, k = jax.nn.silu(q), jax.nn.silu(k)
        if self.layer == 0 if self.lrpe is None else self.lrpe:
            places = jnp.arange(x.shape[1])[None] if positions is None else positions
            theta = self.param(
                "theta", _theta, (self.num_heads, q.shape[-1]), self.param_dtype
            )
            q, k = linearized(q, places, theta), linearized(k, places, theta)
        o = self._recurrence(q, k, v, mask, positions, decode)
        norm = nn.RMSNorm(self.epsilon, use_scale=False, name="norm")
        return (norm(o) * at_least_float32(u)).astype(v.dtype)


def _theta(key, shape, dtype):
    """10000**(-2 t / (H K)) at the flat index t."""
    del key
    size = shape[0] * shape[1]
    return (10000.0 ** (-2 * jnp.arange(size) / size)).reshape(shape).astype(dtype)
