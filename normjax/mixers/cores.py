"""What the mixers of feature maps do with queries, keys and values.

A core is called `core(q, k, v, *, mask=None, regions=None) -> o` on maps: q
[B, H, W, D], k and v [B, H', W', D], o like q. `mask` is bool [B, H', W'], False gives
no key and no value. `regions` is described at `RelativeSoftmax`. Mixers bring the maps
(the whole grid, windows, stripes, a reduced grid) and share their scope with the core,
so that its parameters are theirs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.broadcast import repeat_over_batch
from normjax.core.dense import trunc_normal
from normjax.core.depthwise import depthwise_conv
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers.base import (
    linear_attention,
    merge_heads,
    softmax_attention,
    split_heads,
    tokens_of,
)

_OTHER_REGION = -100.0  # finite, as published


def only_valid(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """t [B, H, W, C] with 0 where `mask` [B, H, W] is False."""
    return t if mask is None else jnp.where(mask[..., None], t, 0)


class Softmax(nn.Module):
    """softmax(q k^T / sqrt(K)) v per head (Vaswani et al., 2017). No parameters.

    Attributes:
      num_heads: heads.  dtype: of the computation.  param_dtype: of the parameters.
    """

    num_heads: int
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
        """See the head of the file."""
        bias = self._bias(q.shape, regions)
        k, v = only_valid(k, mask), only_valid(v, mask)
        heads = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        visible = None if mask is None else mask.reshape(q.shape[0], 1, 1, -1)
        o = softmax_attention(*heads, bias=bias, mask=visible)
        return merge_heads(o).reshape(q.shape)

    def _bias(self, shape: tuple[int, ...], regions: np.ndarray | None):
        del shape, regions
        return None


class RelativeSoftmax(Softmax):
    """softmax(q k^T / sqrt(K) + R) v with a learned bias by offset (Liu et al., 2021).

    R_ij = table[yi - yj + H - 1, xi - xj + W - 1] per head, -100 more where the
    regions of i and j differ. `regions` is int [n, H * W] and belongs to batches of n
    maps per image, image after image; None: one region.
    """

    def _bias(self, shape: tuple[int, ...], regions: np.ndarray | None):
        batch, height, width, _ = shape
        table = self._table((2 * height - 1, 2 * width - 1, self.num_heads))
        y, x = (i.reshape(-1) for i in np.indices((height, width)))
        rows = y[:, None] - y[None] + height - 1
        columns = x[:, None] - x[None] + width - 1
        bias = jnp.moveaxis(at_least_float32(table)[rows, columns], -1, 0)[None]
        if regions is None:
            return bias
        differ = (regions[:, :, None] != regions[:, None])[:, None]
        bias = bias + jnp.asarray(np.where(differ, _OTHER_REGION, 0.0), bias.dtype)
        bias = repeat_over_batch(bias, batch // len(bias))
        return bias.reshape(batch, *bias.shape[2:])

    def _table(self, shape: tuple[int, int, int]) -> jax.Array:
        name, what = "relative_position_bias", "table of offsets"
        return sized_table(self, name, shape, trunc_normal, what, self.param_dtype)


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
        """See the head of the file. The table P fixes H' and W' at initialisation."""
        del regions
        zeros, shape = nn.initializers.zeros, k.shape[1:]
        name, what = "positional_encoding", "table of positions"
        table = sized_table(self, name, shape, zeros, what, self.param_dtype)
        q, k, v, table = promote_dtype(q, k, v, table, dtype=self.dtype)
        k, dtype = k + repeat_over_batch(table, k.shape[0]), q.dtype
        q, k = self._features(q, k)
        k, v = only_valid(k, mask), only_valid(v, mask)
        heads = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        o = merge_heads(linear_attention(*heads, epsilon=self._epsilon(k)))
        o = o.reshape(q.shape) + self._convolve(stretched(v, q.shape[1:3]))
        return o.astype(dtype)

    def _features(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.nn.relu(q), jax.nn.relu(k)

    def _epsilon(self, k: jax.Array) -> float:
        del k
        return self.epsilon

    def _convolve(self, v: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, v.shape[-1] // self.num_heads
        return depthwise_layer(self, "dwc", v, (size, size, channels))


class FocusedLinear(SimplifiedLinear):
    """The core of focused linear attention (FLatten; Han et al., 2023).

    As SimplifiedLinear, but with mean instead of sum in the denominator,

        q' = f((relu(q) + 1e-6) / s)   k' = f((relu(k + P) + 1e-6) / s)
        f(x) = |x| x^p / |x^p|         s = softplus(scale)

    where p = `focusing_factor` acts elementwise and the norms run over all D channels,
    not per head, as released. Features in at least float32.

    Attributes:
      focusing_factor: p.
    """

    focusing_factor: float = 3

    def _features(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros
        scale = self.param("scale", zeros, q.shape[-1:], self.param_dtype)
        s = jax.nn.softplus(at_least_float32(scale)).reshape(1, 1, 1, -1)

        def focused(t):
            t = (jax.nn.relu(at_least_float32(t)) + 1e-6) / s
            # The direction does not depend on the size: powers of values up to 1.
            largest = jax.lax.stop_gradient(jnp.max(t, -1, keepdims=True))
            power = (t / largest) ** self.focusing_factor
            size, new = (jnp.linalg.norm(u, axis=-1, keepdims=True) for u in (t, power))
            return power * (size / new)

        return focused(q), focused(k)

    def _epsilon(self, k: jax.Array) -> float:
        # Means of k and of k v^T over the positions, both multiplied by their number.
        return self.epsilon * k.shape[1] * k.shape[2]


def sized_table(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    init: Initializer,
    what: str,
    dtype: Dtype = jnp.float32,
) -> jax.Array:
    """The parameter `name` of a module, its shape fixed by the first grid.

    Raises:
      UserError: the module was initialised for another grid.
    """
    stored = module.get_variable("params", name)
    if stored is not None and stored.shape != shape:
        kind = type(module).__name__
        raise UserError(
            f"{kind} was initialised with a {what} of {stored.shape[:2]} and needs "
            f"{shape[:2]} here: its size is fixed"
        )
    return module.param(name, init, shape, dtype)


def depthwise_layer(
    module: nn.Module,
    name: str,
    v: jax.Array,
    shape: tuple[int, int, int],
    use_bias: bool = True,
) -> jax.Array:
    """Depthwise convolution; parameters `name`_kernel and, with bias, `name`_bias.

    Args:
      v: [B, H, W, D].  shape: of the kernel, [k, k, d] with d a divisor of D: one
        kernel shared by D / d heads.
    """
    bound = (shape[0] * shape[1]) ** -0.5  # PyTorch's default for this fan-in

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel = module.param(f"{name}_kernel", init, shape, module.param_dtype)
    if not use_bias:
        return depthwise_conv(*promote_dtype(v, kernel, dtype=module.dtype))
    bias = module.param(f"{name}_bias", init, shape[-1:], module.param_dtype)
    v, kernel, bias = promote_dtype(v, kernel, bias, dtype=module.dtype)
    # A gather, for XLA computes it once; jnp.tile becomes an index in the loop of the
    # convolution, which then takes 4 times as long on CPU.
    bias = bias[np.arange(v.shape[-1]) % shape[-1]]
    return depthwise_conv(v, kernel) + bias.reshape(1, 1, 1, -1)


def stretched(v: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """v [B, H', W', D] on another grid, interpolated along its flattened positions.

    One-dimensional and with half-pixel centres: that is what SLAB and FLatten trained
    with, though neighbours in the map are no neighbours in the sequence.
    """
    batch, height, width, channels = v.shape
    if (height, width) == grid:
        return v
    old, new = height * width, grid[0] * grid[1]
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = centres.astype(int)
    right, weight = np.minimum(left + 1, old - 1), jnp.asarray(centres - left, v.dtype)
    weight, v = weight.reshape(1, -1, 1), tokens_of(v)
    return (v[:, left] * (1 - weight) + v[:, right] * weight).reshape(
        batch, *grid, channels
    )
