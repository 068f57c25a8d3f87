"""Convolution, norm and activation: the unit of convolutional networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.depthwise import depthwise_conv
from normjax.core.folding import FoldSite
from normjax.mixers.ops.partition import unfolded
from normjax.models.layers import Factory
from normjax.norms import includes_activation

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


_he_depthwise = nn.initializers.variance_scaling(
    2.0, "fan_out", "normal", in_axis=(), out_axis=(), batch_axis=2
)


class DepthwiseConv(nn.Module):
    """Depthwise convolution without bias, zero padding, every `stride`-th position.

    Fast on CPU, see `core.depthwise`. Kernel [k, k, C], He et al. (2015) by fan-out.

    Attributes:
      kernel_size: k, odd.  stride: 1 keeps the size of the map.
    """

    kernel_size: int = 3
    stride: int = 1
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1])
        kernel = self.param("kernel", _he_depthwise, shape, self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.stride > 2:  # most of the positions would be computed for nothing
            size = self.kernel_size
            patches = unfolded(x, size, self.stride, size // 2)
            patches = patches.reshape(*patches.shape[:3], x.shape[-1], -1)
            kernel = kernel.reshape(-1, x.shape[-1])
            return jnp.einsum("bhwck,kc->bhwc", patches, kernel)
        return depthwise_conv(x, kernel, self.stride)


class ConvUnit(nn.Module):
    """activation(norm(conv(x))).

    By default the convolution has no bias: the norm has one or takes it away. Its
    kernel starts normal with variance 2 / fan-out (He et al., 2015). Behind a norm that
    includes an activation (EvoNorm) there is no other.

    Attributes:
      features: channels of the result.
      norm: factory.  activation: factory, or None for none.
      kernel_size, stride: of the convolution; padding keeps the map at stride 1.
      depthwise: one kernel per channel; `features` are those of x.
      use_bias: of the convolution, unless it is depthwise.
    """

    features: int
    norm: Factory
    activation: Factory | None
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        norm = self.norm(name="norm", dtype=self.dtype)
        x = norm(self._conv()(x), train=train)
        if self.activation is None or includes_activation(norm):
            return x
        return self.activation(name="act")(x)

    def _conv(self) -> nn.Module:
        size, stride, name = self.kernel_size, self.stride, "conv"
        if self.depthwise:
            return DepthwiseConv(size, stride, dtype=self.dtype, name=name)
        return nn.Conv(
            self.features,
            (size, size),
            strides=(stride, stride),
            padding=size // 2,
            use_bias=self.use_bias,
            kernel_init=he_fan_out,
            dtype=self.dtype,
            name=name,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return [FoldSite("norm", self.norm(parent=None), writer="conv")]
