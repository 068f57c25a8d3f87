"""Convolution, maximum and attention side by side (iFormer)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.gelu import gelu
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import highest, pooled_valid
from normjax.mixers.steps import (
    core_of,
    dense_of,
    depthwise_layer,
    normalized_heads,
    project,
)


@MIXERS.register("inception", "grid", "mask")
class InceptionMixer(Mixer):
    """Convolution, maximum and attention on parts of the channels (Si et al., 2022).

    The last `attention_heads` of `num_heads` parts of the channels attend on a pooled
    map, the others keep what varies fast, half of them by a convolution:

        c = gelu(dwconv3x3(W_1 x_1)),  m = gelu(W_2 max3x3(x_2))
        a = up(core(W_3 pool(x_3))),  h = [c, m, a],  y = proj(h + dwconv3x3(h))

    c and m are twice as wide as x_1 and x_2. O(L C**2) multiply-adds and the core on
    L / p**2 positions. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      attention_heads: heads of the part that attends; each has C / num_heads channels.
      pool_size: p, side of what is averaged for the attention.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: parts of the channels.
      qkv_features: width of queries, keys and values; None for that of the part.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.InceptionMixer(num_heads=4, attention_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["proj"]["kernel"].shape
      ((1, 4, 4, 8), (12, 8))
    """

    core: Spec = "softmax"
    attention_heads: int = 1
    pool_size: int = 2
    qkv_bias: bool = True

    reads: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of the core fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key, no value and no maximum.
          train: passed to `qk_norm`.

        Raises:
          UserError: a map that does not pool, channels that do not split, or
            initialised for another grid.
        """
        x, low = only_valid(x, mask), self._low(x.shape[-1])
        half = (x.shape[-1] - low) // 2
        dense = dense_of(self)
        c = Dense(2 * half, use_bias=False, name="conv_in", **dense)(x[..., :half])
        c = depthwise_layer(self, "conv", c, (3, 3, 2 * half), use_bias=False)
        m = x[..., half : 2 * half]
        if mask is not None:
            m = jnp.where(mask[..., None], m, -jnp.inf)
        m = only_valid(highest(m), mask)
        m = Dense(2 * half, name="max_out", **dense)(m)
        a = self._attended(x[..., 2 * half :], mask, train)
        fast = [gelu(t) for t in (c, m)]
        h = only_valid(jnp.concatenate([*fast, a], -1), mask)
        h = h + depthwise_layer(self, "fuse", h, (3, 3, h.shape[-1]), use_bias=False)
        return Dense(x.shape[-1], name="proj", **dense)(h)

    def _low(self, width: int) -> int:
        """Channels that attend."""
        low = self.attention_heads * (width // self.num_heads)
        whole = width % self.num_heads == 0 and (width - low) % 2 == 0
        if not (whole and 0 < self.attention_heads < self.num_heads):
            raise UserError(
                f"{self.attention_heads} of {self.num_heads} heads of {width} "
                "channels: some attend, and the others split into two halves"
            )
        return low

    def _attended(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """The core on the pooled map, each position repeated."""
        side, (rows, columns) = self.pool_size, x.shape[1:3]
        if side < 1 or rows % side or columns % side:
            raise UserError(
                f"a grid of {rows}x{columns} does not pool by {side} (pool_size)"
            )
        small, seen = pooled_valid(x, (rows // side, columns // side), mask)
        q, k, v = project(self, small.astype(x.dtype))
        core = core_of(self, num_heads=self.attention_heads)()
        nn.share_scope(self, core)
        heads = (split_heads(t, self.attention_heads) for t in (q, k))
        q, k = map(merge_heads, normalized_heads(self, *heads, mask=seen, train=train))
        o = core(q, k, v, mask=seen)
        return jnp.repeat(jnp.repeat(o, side, 1), side, 2)
