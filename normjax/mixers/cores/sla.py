"""Simplified linear attention as a core."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from normjax.core.broadcast import repeat_over_batch
from normjax.kernels.choice import kernel_or_function
from normjax.mixers.base import CORES
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.linear_attention import linear_attention
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import stretched
from normjax.mixers.steps import convolved, depthwise_parameters, sized_table


@CORES.register("sla")
class SimplifiedLinear(nn.Module):
    """The core of simplified linear attention (SLAB; Guo et al., 2024).

    With q' = relu(q), k' = relu(k + P) and P a learned table over positions,

        o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads. No scale. Regions are ignored, as published.

    Attributes:
      num_heads: heads.  kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.SimplifiedLinear(num_heads=2, kernel_size=3)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, D]
      >>> o, variables = core.init_with_output(jax.random.key(1), x, x, x)
      >>> o.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['dwc_bias', 'dwc_kernel', 'positional_encoding']
    """

    num_heads: int
    kernel_size: int = 5
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: jax.Array | None = None,
        regions: np.ndarray | None = None,
    ) -> jax.Array:
        """q: [B, H, W, D], k and v: [B, H', W', D] -> as q. See `mixers.cores`.

        The table P fixes H' and W' at initialisation.
        """
        del regions
        q, k, v = positioned(self, q, k, v)
        features = jax.nn.relu(q), jax.nn.relu(k)
        return summed(self, *features, v, mask, self.epsilon)


def positioned(module: Any, q: jax.Array, k: jax.Array, v: jax.Array):
    """q, k + P, v in one type, P a learned table of the positions of k."""
    zeros, shape = nn.initializers.zeros, k.shape[1:]
    name, what = "positional_encoding", "table of positions"
    table = sized_table(module, name, shape, zeros, what, module.param_dtype)
    q, k, v, table = promote_dtype(q, k, v, table, dtype=module.dtype)
    return q, k + repeat_over_batch(table, k.shape[0]), v


def summed(
    module: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    epsilon: float,
) -> jax.Array:
    """Linear attention of features q and k, and a depthwise convolution of v.

    Args:
      module: with `num_heads` and `kernel_size`; gets `dwc_kernel` and `dwc_bias`.
      q: [B, H, W, D].  k, v: [B, H', W', D].

    Returns:
      As q.
    """
    k, v = only_valid(k, mask), only_valid(v, mask)
    size, heads = module.kernel_size, module.num_heads
    shape = (size, size, v.shape[-1] // heads)

    def apart(q, k, v, kernel, bias):
        by_head = (split_heads(tokens_of(t), heads) for t in (q, k, v))
        o = merge_heads(linear_attention(*by_head, epsilon=epsilon)).reshape(q.shape)
        near = convolved(stretched(v, q.shape[1:3]), kernel, bias, module.dtype)
        return (o + near).astype(q.dtype)

    weights = depthwise_parameters(module, "dwc", shape)
    if q.dtype != jnp.bfloat16:
        return apart(q, k, v, *weights)
    return _by_kernels(apart, q, k, v, *weights, num_heads=heads, epsilon=epsilon)


def _by_kernels(apart, q, k, v, taps, bias, **settings) -> jax.Array:
    """`apart(q, k, v, taps, bias)`; on TPUs by kernels, if they compute it."""
    # Here, for Pallas takes longer to import than all mixers.
    from normjax.kernels import linear_attention as forward
    from normjax.kernels import linear_attention_gradient as gradient

    heads, size = settings["num_heads"], taps.shape[:2]

    def kernel(q, k, v, taps, bias):
        if not forward.fits(q, k, v, heads, size):
            return apart(q, k, v, taps, bias)
        return forward.linear_attention(q, k, v, taps, bias, **settings)

    def pullback(primals, do):
        q, k, v, taps, _ = primals
        if not gradient.fits(q, k, v, heads, size):
            return jax.vjp(apart, *primals)[1](do)
        found = gradient.pullback(q, k, v, taps, do, **settings)
        return tuple(g.astype(p.dtype) for g, p in zip(found, primals, strict=True))

    def chosen(q, k, v, taps, bias):
        pulled = pullback if gradient.fits(q, k, v, heads, size) else None
        given = (q, k, v), taps, bias
        return kernel_or_function(kernel, apart, *given, pullback=pulled)

    # Not elsewhere, where gradients by `pullback` would compute forward once more.
    given = q, k, v, taps, bias
    return jax.lax.platform_dependent(*given, tpu=chosen, default=apart)
