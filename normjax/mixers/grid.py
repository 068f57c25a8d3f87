"""What the mixers of feature maps share: projections, their core, partitions."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.arguments import field_names
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.registry import Part
from normjax.mixers.base import (
    QK_NORM,
    merge_heads,
    normalized_heads,
    split_heads,
)


class GridMixer(nn.Module):
    """Base of mixers that project a map, let a core act on it and project again.

    Attributes:
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qkv_bias: bias of their projection.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qkv_bias: bool = True
    qk_norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    core: ClassVar[type[nn.Module]]
    reads: ClassVar[tuple[str, ...]] = ("qkv",)
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"qk_norm": QK_NORM}

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}

    @nn.nowrap
    def _width(self, x: jax.Array) -> int:
        return self.qkv_features or x.shape[-1]

    @nn.nowrap
    def _dense(self) -> dict[str, Any]:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return {"kernel_init": self.kernel_init, **types}

    @nn.nowrap
    def _core_arguments(self) -> dict[str, Any]:
        """Those attributes of the mixer that the core has as well."""
        return {name: getattr(self, name) for name in field_names(self.core)}

    def _own_core(self) -> nn.Module:
        """The core, its parameters among those of the mixer."""
        core = self.core(**self._core_arguments())
        nn.share_scope(self, core)
        return core

    def _project(
        self, x: jax.Array, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, ...]:
        """Queries, keys and values."""
        width, bias = self._width(x), self.qkv_bias
        project = SplitDense(3, width, use_bias=bias, name="qkv", **self._dense())
        q, k, v = project(x)
        return *self._normalized(q, k, mask, train), v

    def _normalized(self, q, k, mask: jax.Array | None, train: bool):
        """Queries and keys [B, H, W, D] after `qk_norm`; `mask` is that of the keys."""
        if self.qk_norm is None:
            return q, k
        heads = (split_heads(t, self.num_heads) for t in (q, k))
        q, k = normalized_heads(self, *heads, mask=mask, train=train)
        return merge_heads(q), merge_heads(k)

    def _finish(self, o: jax.Array, features: int) -> jax.Array:
        return Dense(features, name="proj", **self._dense())(o)


def partition(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """[B, H, W, ...] -> [B * n, h, w, ...]: all n windows of the first image first.

    Raises:
      UserError: the windows do not cover the grid.
    """
    batch, height, width = x.shape[:3]
    h, w = window
    if height % h or width % w:
        raise UserError(f"windows of {h}x{w} do not cover a grid of {height}x{width}")
    x = x.reshape(batch, height // h, h, width // w, w, *x.shape[3:])
    return jnp.swapaxes(x, 2, 3).reshape(-1, h, w, *x.shape[5:])


def merge(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """The inverse of `partition`: [B * n, h, w, ...] -> [B, H, W, ...]."""
    h, w = x.shape[1:3]
    height, width = grid
    x = x.reshape(-1, height // h, width // w, h, w, *x.shape[3:])
    return jnp.swapaxes(x, 2, 3).reshape(-1, height, width, *x.shape[5:])
