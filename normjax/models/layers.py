"""Layers that the models share: stems, MLP, stochastic depth, norm placement, block."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import Registry
from normjax.mixers.cores import depthwise_layer
from normjax.norms.base import includes_activation

Factory = Callable[..., Any]

STEMS = Registry("stem")
MLPS = Registry("mlp")


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
        return x * self.param("scale", init, x.shape[-1:]).astype(x.dtype)


@MLPS.register("mlp", "seq", "grid", "causal", "decode")
class MLP(nn.Module):
    """fc2(activation(fc1(x))), the feed-forward layer of transformers.

    Attributes:
      hidden: width between the two layers.  activation: factory.
    """

    hidden: int
    activation: Factory
    dtype: Dtype | None = None

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., C]."""
        width = x.shape[-1]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = Dense(self.hidden, name="fc1", **dense)(x)
        x = self.activation(name="act")(x)
        return Dense(width, name="fc2", **dense)(x)


@MLPS.register("depthwise_mlp", "grid")
class DepthwiseMLP(nn.Module):
    """fc2(activation(dwconv3x3(fc1(x)))) on a map (PVT v2; Wang et al., 2022).

    Attributes:
      hidden: width between the two layers.  activation: factory.
      rectify: a ReLU before the convolution, as next to linear spatial reduction.
    """

    hidden: int
    activation: Factory
    rectify: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        width = x.shape[-1]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = Dense(self.hidden, name="fc1", **dense)(x)
        x = jax.nn.relu(x) if self.rectify else x
        x = depthwise_layer(self, "dwc", x, (3, 3, self.hidden))
        x = self.activation(name="act")(x)
        return Dense(width, name="fc2", **dense)(x)


@STEMS.register("patch", "grid")
class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped linearly (Dosovitskiy et al., 2021).

    Attributes:
      dim: width of the tokens.  patch_size: side of a patch in pixels.
    """

    dim: int
    norm: Factory
    activation: Factory
    patch_size: int = 16
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "proj"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / patch_size, W / patch_size, dim].

        Raises:
          UserError: H or W is no multiple of `patch_size`.
        """
        del train
        side = self.patch_size
        if x.shape[1] % side or x.shape[2] % side:
            height, width = x.shape[1:3]
            raise UserError(
                f"stem 'patch': {height}x{width} pixels do not split into patches of "
                f"{side}x{side} (patch_size)"
            )
        fan_in = side * side * x.shape[-1]
        init = nn.initializers.truncated_normal(math.sqrt(1 / fan_in))
        return nn.Conv(
            self.dim,
            (side, side),
            strides=(side, side),
            padding="VALID",
            kernel_init=init,
            dtype=self.dtype,
            name="proj",
        )(x)

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        del dim
        return {}


@STEMS.register("conv", "grid")
class ConvStem(nn.Module):
    """3x3 convolutions, each but the last with norm and activation (Xiao et al., 2021).

    Attributes:
      dim: width of the tokens.  strides: one per convolution.
      hidden: width of the convolutions before the last; None for dim / 2.
    """

    dim: int
    norm: Factory
    activation: Factory
    strides: tuple[int, ...] = (2, 1)
    hidden: int | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / s, W / s, dim] with s the product of strides."""
        last = len(self.strides) - 1
        hidden = self.hidden or max(1, self.dim // 2)
        for i, stride in enumerate(self.strides):
            x = nn.Conv(
                self.dim if i == last else hidden,
                (3, 3),
                strides=(stride, stride),
                padding=1,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            if i < last:
                norm = self.norm(name=f"norm_{i}", dtype=self.dtype)
                x = norm(x, train=train)
                if not includes_activation(norm):
                    x = self.activation(name=f"act_{i}")(x)
        return x

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms, each with the convolution that it reads."""
        norm, inner = self.norm(parent=None), range(len(self.strides) - 1)
        return [FoldSite(f"norm_{i}", norm, writer=f"conv_{i}") for i in inner]

    @property
    def writes(self) -> str | None:
        """The layer that makes the tokens."""
        return f"conv_{len(self.strides) - 1}"

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"hidden": self.hidden or max(1, dim // 2)}
