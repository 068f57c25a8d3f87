"""Around compact convolutional transformers: tokens of images, one token of all."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.moments import at_least_float32
from normjax.core.ranges import COUNT, POSITIVE, Range
from normjax.models.layers import Factory
from normjax.models.stems import STEMS


@STEMS.register("conv_tokenizer", "grid")
class ConvTokenizer(nn.Module):
    """Convolutions, each with relu and maximum (CCT; Hassani et al., 2021).

        y = maxpool3x3(relu(conv(x))), the maximum at stride 2

    one after the other. The maximum sees one position around the map.

    Attributes:
      dim: width of the tokens.
      norm, activation: factories, unused: there are no norms, and relu.
      layers: number of convolutions.
      kernel_size: k of the convolutions.
      stride, padding: of the convolutions; None for max(1, k // 2 - 1) and
        max(1, k // 2).
      hidden: width of the convolutions before the last.
      use_bias: bias of the convolutions.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> stem = models.ConvTokenizer(dim=8, norm=None, activation=None, layers=2)
      >>> images = jax.random.normal(jax.random.key(0), (1, 9, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 3, 2, 8), ['conv_0', 'conv_1'])
    """

    dim: int
    norm: Factory | None
    activation: Factory | None
    layers: int = 1
    kernel_size: int = 3
    stride: int | None = None
    padding: int | None = None
    hidden: int = 64
    use_bias: bool = False
    dtype: Dtype | None = None

    # A maximum comes last.
    writes: ClassVar[str | None] = None
    ranges: ClassVar[Mapping[str, Range]] = {"layers": POSITIVE, "padding": COUNT}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H', W', dim]; each layer at least halves a side."""
        del train
        size = self.kernel_size
        stride = max(1, size // 2 - 1) if self.stride is None else self.stride
        padding = max(1, size // 2) if self.padding is None else self.padding
        around: Any = ((1, 1), (1, 1))
        for i in range(self.layers):
            x = nn.Conv(
                self.dim if i == self.layers - 1 else self.hidden,
                (size, size),
                stride,
                padding,
                use_bias=self.use_bias,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = nn.max_pool(jax.nn.relu(x), (3, 3), strides=(2, 2), padding=around)
        return x

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        del dim
        return {}


class SequencePooling(nn.Module):
    """y = sum_i softmax_i(w . x_i + b) x_i: one token of all.

    (CCT; Hassani et al., 2021.) Softmax and sum in at least float32.

    Attributes:
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, C]
      >>> pool = models.SequencePooling()
      >>> y, variables = pool.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["scores"]["kernel"].shape
      ((2, 8), (8, 1))
    """

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, ..., C] -> [B, C].

        Args:
          mask: bool [B, ...]; False is padding, which has no weight.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if mask is not None:
            mask = mask.reshape(*x.shape[:2], 1)
            x = jnp.where(mask, x, 0)
        scores = Dense(1, kernel_init=trunc_normal, name="scores", **types)(x)
        weights = jax.nn.softmax(at_least_float32(scores), 1, where=mask)
        y = jnp.sum(weights * at_least_float32(x), 1)
        return y.astype(scores.dtype)
