"""Layers that blocks share: stochastic depth, a learned scale."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.mixers.steps import depthwise_layer
from normjax.norms.base import along_channels

Factory = Callable[..., Any]


class StochasticDepth(nn.Module):
    """Drop a residual branch of an example at random (Huang et al., 2016).

    y = x * keep / (1 - rate), keep ~ Bernoulli(1 - rate) per example; at evaluation
    the identity. Uses the random stream "dropout".
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, ...] -> [B, ...]."""
        broadcast = tuple(range(1, x.ndim))
        dropout = nn.Dropout(self.rate, broadcast_dims=broadcast)
        return dropout(x, deterministic=not train)


class LayerScale(nn.Module):
    """y = scale * x with one learned factor a channel (CaiT; Touvron et al., 2021).

    Attributes:
      init: first value of the factors.
    """

    init: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> same."""
        init = nn.initializers.constant(self.init)
        scale = self.param("scale", init, x.shape[-1:]).astype(x.dtype)
        return x * along_channels(scale, x.ndim)


class PositionConv(nn.Module):
    """A depthwise convolution that tells where a position is (Chu et al., 2023).

    As a branch of its own x + dwconv(x): what lies beyond the map is 0, so that the
    border is seen (CPVT; DaViT, STViT).

    Attributes:
      kernel_size: side of the kernel, odd.
      dtype: of the computation.  param_dtype: of the parameters.
    """

    kernel_size: int = 3
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        size = self.kernel_size
        return depthwise_layer(self, "dwc", x, (size, size, x.shape[-1]))
