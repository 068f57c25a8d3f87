"""Focused linear attention as a core."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.moments import at_least_float32
from normjax.mixers.base import CORES
from normjax.mixers.cores.sla import positioned, summed


@CORES.register("focused_linear")
class FocusedLinear(nn.Module):
    """The core of focused linear attention (FLatten; Han et al., 2023).

    With P a learned table over positions,

        q' = f((relu(q) + 1e-6) / s)   k' = f((relu(k + P) + 1e-6) / s)
        f(x) = |x| x^p / |x^p|         s = softplus(scale)
        o_i = (q'_i . mean_j k'_j v_j^T) / (q'_i . mean_j k'_j + epsilon)

    where p = `focusing_factor` acts elementwise and the norms run over all D channels,
    not per head, as released; plus a depthwise convolution of v whose one kernel is
    shared by all heads. Features in at least float32. Regions are ignored.

    Attributes:
      num_heads: heads.  focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.FocusedLinear(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, D]
      >>> key = jax.random.key(1)
      >>> o, variables = jax.eval_shape(core.init_with_output, key, x, x, x)
      >>> o.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['dwc_bias', 'dwc_kernel', 'positional_encoding', 'scale']
    """

    num_heads: int
    focusing_factor: float = 3
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
        zeros = nn.initializers.zeros
        scale = self.param("scale", zeros, q.shape[-1:], self.param_dtype)
        s = jax.nn.softplus(at_least_float32(scale)).reshape(1, 1, 1, -1)
        fq, fk = (_focused(t, s, self.focusing_factor) for t in (q, k))
        # Means of k and of k v^T over the positions, both multiplied by their number.
        epsilon = self.epsilon * k.shape[1] * k.shape[2]
        return summed(self, fq, fk, v, mask, epsilon).astype(q.dtype)


def _focused(t: jax.Array, s: jax.Array, factor: float) -> jax.Array:
    """f((relu(t) + 1e-6) / s), see FocusedLinear."""
    t = (jax.nn.relu(at_least_float32(t)) + 1e-6) / s
    # The direction does not depend on the size: powers of values up to 1.
    largest = jax.lax.stop_gradient(jnp.max(t, -1, keepdims=True))
    power = (t / largest) ** factor
    size, new = (jnp.linalg.norm(u, axis=-1, keepdims=True) for u in (t, power))
    return power * (size / new)
