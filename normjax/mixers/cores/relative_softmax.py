"""Softmax attention with a learned bias by offset as a core."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.broadcast import repeat_over_batch
from normjax.core.dense import trunc_normal
from normjax.core.moments import at_least_float32
from normjax.kernels.choice import kernel_or_function
from normjax.mixers.base import CORES
from normjax.mixers.ops.attend import softmax_over_maps
from normjax.mixers.ops.partition import Windows
from normjax.mixers.steps import check_same_map, sized_table

_OTHER_REGION = -100.0  # finite, as published


@CORES.register("relative_softmax")
class RelativeSoftmax(nn.Module):
    """softmax(q k^T / sqrt(K) + R) v with a learned bias by offset (Liu et al., 2021).

    R_ij = table[yi - yj + H - 1, xi - xj + W - 1] per head, -100 more where the
    regions of i and j differ. `regions` is int [n, H * W] and belongs to batches of n
    maps per image, image after image; None: one region. With `windows` the maps are
    whole, and are attended to in windows: a TPU does it without cutting them.

    Attributes:
      num_heads: heads.
      dtype: unused: the result has the type of the queries.
      param_dtype: of the table.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.RelativeSoftmax(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, D]
      >>> o, variables = core.init_with_output(jax.random.key(1), x, x, x)
      >>> o.shape, [p.shape for p in jax.tree.leaves(variables)]  # 7 * 7 offsets
      ((1, 4, 4, 8), [(7, 7, 2)])
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.nowrap
    def takes_windows(
        self, q: jax.ShapeDtypeStruct, windows: Windows, train: bool
    ) -> bool:
        """Whether maps like q are best whole: where none is trained without a kernel.

        Those are best cut before queries, keys and values are made of them.
        """
        if not train or q.dtype != jnp.bfloat16:
            return not train
        from normjax.kernels.window_attention_gradient import fits

        return fits(q, self.num_heads, *windows)

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: jax.Array | None = None,
        regions: np.ndarray | None = None,
        windows: Windows | None = None,
    ) -> jax.Array:
        """q, k, v: [B, H, W, D] -> as q. See `mixers.cores`.

        Raises:
          UserError: keys of another map than queries: there is no offset between them.
        """
        check_same_map("relative_softmax", q, k)
        height, width = q.shape[1:3] if windows is None else windows.size
        shape = (2 * height - 1, 2 * width - 1, self.num_heads)
        name, what = "relative_position_bias", "table of offsets"
        table = sized_table(self, name, shape, trunc_normal, what, self.param_dtype)
        bias = _bias_by_offset(at_least_float32(table), height, width)
        if windows is None:
            return _attend(q, k, v, bias, mask, regions, self.num_heads)
        return _in_windows(q, k, v, bias, mask, windows, self.num_heads)


def _attend(q, k, v, bias, mask, regions, num_heads):
    if regions is not None:
        bias = _apart(bias, regions, q.shape[0])
    return softmax_over_maps(q, k, v, num_heads, bias=bias, mask=mask)


def _in_windows(q, k, v, bias, mask, windows: Windows, num_heads: int):
    def cut(q, k, v, bias):
        inside = None if mask is None else windows.cut(mask)
        regions = windows.regions(q.shape[1:3])
        q_in, k_in, v_in = map(windows.cut, (q, k, v))
        o = _attend(q_in, k_in, v_in, bias, inside, regions, num_heads)
        return windows.joined(o, q.shape[1:3])

    if mask is not None or q.dtype != jnp.bfloat16:
        return cut(q, k, v, bias)
    return _by_kernels(cut, q, k, v, bias, windows, num_heads)


def _by_kernels(cut, q, k, v, bias, windows: Windows, num_heads: int) -> jax.Array:
    """`cut(q, k, v, bias)`; on TPUs by kernels, if they compute it."""
    # Here, for Pallas takes longer to import than all mixers.
    from normjax.kernels import window_attention as forward
    from normjax.kernels import window_attention_gradient as gradient

    layer = {"num_heads": num_heads, "window": windows.size, "shift": windows.shift}

    def kernel(q, k, v, bias):
        if not forward.fits(q, **layer):
            return cut(q, k, v, bias)
        return forward.window_attention(q, k, v, bias[0], **layer, apart=_OTHER_REGION)

    def pullback(primals, do):
        q, k, v, bias = primals
        if not gradient.fits(q, **layer):
            return jax.vjp(cut, *primals)[1](do)
        given = q, k, v, bias[0], do
        *found, by_bias = gradient.pullback(*given, **layer, apart=_OTHER_REGION)
        return *found, by_bias[None].astype(bias.dtype)

    def chosen(q, k, v, bias):
        pulled = pullback if gradient.fits(q, **layer) else None
        return kernel_or_function(kernel, cut, (q, k, v), bias, pullback=pulled)

    # Not elsewhere, where gradients by `pullback` would compute forward once more.
    return jax.lax.platform_dependent(q, k, v, bias, tpu=chosen, default=cut)


def _bias_by_offset(table: jax.Array, height: int, width: int) -> jax.Array:
    """[2 H - 1, 2 W - 1, heads] -> [1, heads, H * W, H * W]."""
    y, x = (i.reshape(-1) for i in np.indices((height, width)))
    rows = y[:, None] - y[None] + height - 1
    columns = x[:, None] - x[None] + width - 1
    return jnp.moveaxis(table[rows, columns], -1, 0)[None]


def _apart(bias: jax.Array, regions: np.ndarray, batch: int) -> jax.Array:
    """The bias of every map, lower where the regions of two positions differ."""
    differ = (regions[:, :, None] != regions[:, None])[:, None]
    bias = bias + jnp.asarray(np.where(differ, _OTHER_REGION, 0.0), bias.dtype)
    bias = repeat_over_batch(bias, batch // len(bias))
    return bias.reshape(batch, *bias.shape[2:])
