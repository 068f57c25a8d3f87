"""Attention of blocks to themselves and a rim around them (HaloNet)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.partition import bordered, merge, overlapping, partition
from normjax.mixers.steps import dense_of, normalized_maps, own_core


@MIXERS.register("halo", "grid", "mask")
class HaloAttention(Mixer):
    """Attention of blocks to a window around them (HaloNet; Vaswani et al., 2021).

    The queries of a block of b x b positions see its own keys and those of a rim of s
    positions around it. By default, per head and block,

        softmax(q k^T / sqrt(K) + q . (R + S)) v

    with learned vectors R and S by the offset in rows and in columns. Beyond the map
    keys and values are 0 and are seen. There is no projection behind. O(L (b + 2 s)**2
    D) multiply-adds. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` that takes more keys than queries
        ("query_relative_softmax", "softmax", "sla"), a dict with `name` and arguments,
        or a factory.
      block_size: b; a map that is no larger is one block.
      halo_size: s.
      stride: of the queries, and of the result, in rows and columns.
      qkv_bias: bias of the projections of queries and of keys and values.
      value_features: width of the values and of the result; None for that of x.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries and keys; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.HaloAttention(num_heads=2, block_size=2, halo_size=1)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["height"].shape  # windows of 4, 7 offsets
      ((1, 4, 4, 8), (7, 4))
      >>> sorted(variables["params"])
      ['height', 'kv', 'q', 'width']
    """

    core: Spec = "query_relative_softmax"
    block_size: int = 8
    halo_size: int = 3
    stride: int = 1
    qkv_bias: bool = False
    value_features: int | None = None

    reads: ClassVar[tuple[str, ...]] = ("q", "kv")
    writes: ClassVar[str | None] = None
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / stride, W / stride, V]. Tables fix the window.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: blocks that do not cover the grid or that the stride does not
            divide, initialised for another window, or D does not split into heads.
        """
        step, halo = self.stride, self.halo_size
        block, small, window = self._geometry(x.shape[1:3])
        core, width = own_core(self), self.qkv_features or x.shape[-1]
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        values = self.value_features or x.shape[-1]
        q = Dense(width, name="q", **dense)(x[:, ::step, ::step])
        kv = Dense(width + values, name="kv", **dense)(x)
        q, k = normalized_maps(self, q, kv[..., :width], mask, train)

        def windows(t):
            t = overlapping(t, window, block)
            return t.reshape(-1, *window, *t.shape[5:])

        k, v = windows(bordered(k, halo)), windows(bordered(kv[..., width:], halo))
        if mask is not None:
            rim = ((0, 0), (halo, halo), (halo, halo))
            mask = windows(jnp.pad(mask, rim, constant_values=True))
        return merge(core(partition(q, small), k, v, mask=mask), q.shape[1:3])

    @nn.nowrap
    def _geometry(self, grid: tuple[int, ...]):
        """(height, width) of a block, of its queries and of its window."""
        step, side = self.stride, self.block_size
        h, w = block = min(side, grid[0]), min(side, grid[1])
        if grid[0] % h or grid[1] % w:
            raise UserError(
                f"blocks of {h}x{w} do not cover a grid of {grid[0]}x{grid[1]}"
            )
        if step < 1 or h % step or w % step:
            raise UserError(f"stride {step} does not divide blocks of {h}x{w}")
        rim = 2 * self.halo_size
        return block, (h // step, w // step), (h + rim, w + rim)
