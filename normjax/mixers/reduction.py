"""Attention to a reduced feature map (PVT)."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.accumulate import einsum
from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.moments import at_least_float32
from normjax.core.registry import NORMS, Part
from normjax.mixers.base import MIXERS
from normjax.mixers.cores import (
    FocusedLinear,
    SimplifiedLinear,
    Softmax,
    only_valid,
)
from normjax.mixers.grid import GridMixer


class ReductionNorm(nn.Module):
    """LayerNorm over the channels, called as a norm is; the default of reductions.

    Attributes: as in nn.LayerNorm.
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> same. `mask` and `train` are unused: one rule per position."""
        del mask, train
        norm = nn.LayerNorm(
            self.epsilon, self.dtype, self.param_dtype, use_fast_variance=False
        )
        nn.share_scope(self, norm)
        return norm(x)


class Reduced(GridMixer):
    """Base of mixers with keys and values from a smaller map.

    Attributes: those of GridMixer and
      reduction_norm: factory of the norm of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
    """

    reduction_norm: Callable[..., nn.Module] | None = None

    parts: ClassVar[Mapping[str, Part]] = {
        "reduction_norm": Part(NORMS, needs=frozenset({"grid"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of positions fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the smaller map is one if any that it is made of is.
          train: passed to `reduction_norm` and `qk_norm`.

        Raises:
          UserError: a grid that does not reduce, initialised for another grid, or D
            does not split into heads.
        """
        core, width, bias = self._own_core(), self._width(x), self.qkv_bias
        q = Dense(width, use_bias=bias, name="q", **self._dense())(x)
        x_kv, mask = self._reduce(only_valid(x, mask), mask, train)
        kv = SplitDense(2, width, use_bias=bias, name="kv", **self._dense())
        k, v = kv(x_kv)
        q, k = self._normalized(q, k, mask, train)
        return self._finish(core(q, k, v, mask=mask), x.shape[-1])

    def _reduce(self, x: jax.Array, mask: jax.Array | None, train: bool):
        """The smaller map and its mask."""
        raise NotImplementedError

    def _normalise(self, x: jax.Array, mask: jax.Array | None, train: bool):
        norm = self.reduction_norm
        if norm is None:
            norm = functools.partial(ReductionNorm, param_dtype=self.param_dtype)
        return norm(name="norm", dtype=self.dtype)(x, mask=mask, train=train)


class Strided(Reduced):
    """Base of mixers that reduce by a convolution (PVT; Wang et al., 2021).

    Attributes: those of Reduced and
      sr_ratio: size and stride of the convolution; at 1 there is none and no norm.
    """

    sr_ratio: int = 1

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the layers that read the input."""
        return ("q", "kv" if self.sr_ratio == 1 else "sr")

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.sr_ratio == 1 or self.reduction_norm is None:
            return []
        norm = self.reduction_norm(parent=None)
        return [FoldSite("norm", norm, readers=("kv",))]

    def _reduce(self, x: jax.Array, mask: jax.Array | None, train: bool):
        side, width = self.sr_ratio, self._width(x)
        if side == 1:
            return x, mask
        rows, columns = x.shape[1:3]
        if rows % side or columns % side:
            raise UserError(
                f"a grid of {rows}x{columns} does not reduce by {side} (sr_ratio)"
            )
        init = nn.initializers.normal(math.sqrt(2 / (side * side * width)))
        arguments = {**self._dense(), "kernel_init": init}
        conv = nn.Conv(width, (side, side), side, "VALID", name="sr", **arguments)
        if mask is not None:
            cells = (x.shape[0], rows // side, side, columns // side, side)
            mask = jnp.any(mask.reshape(cells), (2, 4))
        return self._normalise(conv(x), mask, train), mask


@MIXERS.register("spatial_reduction", "grid", "mask")
class SpatialReductionAttention(Strided):
    """Softmax attention to a strided convolution of the map (PVT; Wang et al., 2021).

        r = norm(conv_RxR(x)),  softmax(q(x) k(r)^T / sqrt(K)) v(r)

    per head, then a projection. O(L**2 D / R**2) multiply-adds with R = `sr_ratio`.
    Softmax in at least float32.

    Attributes: those of Strided.
    """

    core: ClassVar[type[nn.Module]] = Softmax


@MIXERS.register("spatial_reduction_sla", "grid", "mask")
class SpatialReductionSimplifiedLinearAttention(Strided):
    """`sla` with keys and values from a reduced map (SLAB-PVT; Guo et al., 2024).

    The table of positions is that of the reduced map. For the depthwise convolution v
    is stretched back along the flattened positions; the published models do not reduce
    (R = 1). O(L K D) multiply-adds.

    Attributes: those of Strided and of SimplifiedLinearAttention.
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = SimplifiedLinear


@MIXERS.register("spatial_reduction_focused_linear", "grid", "mask")
class SpatialReductionFocusedLinearAttention(Strided):
    """`focused_linear` to a reduced map (FLatten-PVT; Han et al., 2023).

    The rest as in `spatial_reduction_sla`.

    Attributes: those of Strided and of FocusedLinearAttention.
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = FocusedLinear


@MIXERS.register("linear_spatial_reduction", "grid", "mask")
class LinearSpatialReductionAttention(Reduced):
    """Softmax attention to a map pooled to a fixed size (PVT v2; Wang et al., 2022).

        r = gelu(norm(W pool(x))),  softmax(q(x) k(r)^T / sqrt(K)) v(r)

    per head, then a projection. Bin i of the pool averages rows floor(i H / s) to
    ceil((i + 1) H / s), columns likewise. O(L s**2 D) multiply-adds with s =
    `pool_size`: linear in L. Softmax in at least float32.

    Attributes: those of Reduced and
      pool_size: side of the pooled map.
    """

    pool_size: int = 7

    core: ClassVar[type[nn.Module]] = Softmax
    # Averages have weights of sum 1, so a scale and a shift pass through them.
    reads: ClassVar[tuple[str, ...]] = ("q", "sr")

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.reduction_norm is None:
            return []
        return [FoldSite("norm", self.reduction_norm(parent=None), writer="sr")]

    def _reduce(self, x: jax.Array, mask: jax.Array | None, train: bool):
        pooled = self._pool(x)
        if mask is not None:
            share = self._pool(mask[..., None].astype(pooled.dtype))
            pooled = pooled / jnp.where(share > 0, share, 1)
            mask = share[..., 0] > 0
        width = self._width(x)
        init = nn.initializers.normal(math.sqrt(2 / width))
        dense = Dense(width, name="sr", **{**self._dense(), "kernel_init": init})
        r = self._normalise(dense(pooled.astype(x.dtype)), mask, train)
        return jax.nn.gelu(r, approximate=False), mask

    @nn.nowrap
    def _pool(self, x: jax.Array) -> jax.Array:
        x = at_least_float32(x)
        rows, columns = (jnp.asarray(self._bins(n), x.dtype) for n in x.shape[1:3])
        x = einsum("sh,bhwc->bswc", rows, x)
        return einsum("tw,bswc->bstc", columns, x)

    @nn.nowrap
    def _bins(self, size: int) -> np.ndarray:
        weights = np.zeros((self.pool_size, size))
        for i in range(self.pool_size):
            first, last = i * size, (i + 1) * size
            inside = slice(first // self.pool_size, -(-last // self.pool_size))
            weights[i, inside] = 1
        return weights / weights.sum(1, keepdims=True)
