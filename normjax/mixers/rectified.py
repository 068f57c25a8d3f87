"""Rectified linear attention: ReLU in the place of softmax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.mixers.base import MIXERS, merge_heads
from normjax.mixers.sequence import LinearlyProjected


@MIXERS.register("rela", "seq", "grid", "causal", "decode", "memory", "mask")
class RectifiedLinearAttention(LinearlyProjected):
    """Rectified linear attention, ReLA (Zhang, Titov and Sennrich, 2021).

        o = relu(q k^T / sqrt(K)) v per head      y = proj(RMSNorm(o))

    without any sum to divide by; a token may attend to nothing. The root mean square
    runs over all heads together, with epsilon 1e-8. O(L**2 D) multiply-adds. Weights
    and norm in at least float32.

    Attributes: those of LinearlyProjected and
      epsilon: added to the mean square.
    """

    epsilon: float = 1e-8

    def _attend(self, q, k, v, context):
        visible, wide = context.visible, jnp.promote_types(q.dtype, jnp.float32)
        qh, kh, vh = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))
        einsum = functools.partial(jnp.einsum, preferred_element_type=wide)
        scores = einsum("bhnk,bhmk->bhnm", qh, kh)
        weights = jax.nn.relu(scores * q.shape[-1] ** -0.5)
        if context.causal:
            order = jnp.tril(jnp.ones(weights.shape[-2:], bool))[None, None]
            visible = order if visible is None else visible & order
        if visible is not None:
            weights = jnp.where(visible, weights, 0)
        o = einsum("bhnm,bhmv->bnhv", weights.astype(v.dtype), vh)
        return self._normalize(merge_heads(o)).astype(q.dtype)

    def _normalize(self, o: jax.Array) -> jax.Array:
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        return norm(o)


@MIXERS.register("gated_rela", "seq", "grid", "causal", "decode", "memory", "mask")
class GatedRectifiedLinearAttention(RectifiedLinearAttention):
    """ReLA whose norm is gated (Zhang, Titov and Sennrich, 2021).

        y = proj(RMSNorm(o) * sigmoid(gate * o))

    with o as in `rela` and one learned number per channel, which multiplies the o that
    is not normalised. O(L**2 D) multiply-adds.

    Attributes: those of RectifiedLinearAttention.
    """

    def _normalize(self, o: jax.Array) -> jax.Array:
        ones = nn.initializers.ones
        gate = self.param("gate", ones, o.shape[-1:], self.param_dtype)
        gate = jax.nn.sigmoid(at_least_float32(gate).reshape(1, 1, -1) * o)
        return super()._normalize(o) * gate
