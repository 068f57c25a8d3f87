"""Modulation of an MLP by its surroundings (EfficientMod)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.gelu import gelu
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of, depthwise_layer


@MIXERS.register("efficient_modulation", "grid", "mask")
class EfficientModulation(nn.Module):
    """An MLP whose inside is multiplied by the context (EfficientMod; Ma et al., 2024).

        c = G sum_k gelu(conv_k(F x))        y = W2 (gelu(W1 x) * [c | c | ...])

    with depthwise convolutions and all layers with bias; c has C channels and is
    repeated `expansion` times. With `expansion` 1 there is no gelu around W1.
    O(expansion L C**2 + k**2 L C) multiply-adds with kernels k x k.

    Attributes:
      expansion: width inside, in multiples of C.
      kernel_sizes: of the convolutions, odd.
      features: width C of the context; None for that of x.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.EfficientModulation(expansion=2, kernel_sizes=(3,))
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((1, 4, 4, 8), (8, 16))
      >>> sorted(variables["params"])[:3]
      ['context_0_bias', 'context_0_kernel', 'context_in']
    """

    expansion: int = 4
    kernel_sizes: tuple[int, ...] = (7,)
    features: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("fc1", "context_in")
    writes: ClassVar[str | None] = "fc2"
    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(
        ("expansion", "kernel_sizes", "features"), POSITIVE
    )

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions are 0 for the convolutions.
          train: unused: one rule.

        Raises:
          UserError: no kernel, or one of even size.
        """
        del train
        if not self.kernel_sizes or not all(size % 2 for size in self.kernel_sizes):
            raise UserError(
                "mixer 'efficient_modulation': kernel_sizes must be odd numbers, at "
                f"least one, got {self.kernel_sizes}"
            )
        channels, dense = self.features or x.shape[-1], dense_of(self)
        near = only_valid(Dense(channels, name="context_in", **dense)(x), mask)
        contexts = [
            depthwise_layer(self, f"context_{i}", near, (size, size, channels))
            for i, size in enumerate(self.kernel_sizes)
        ]
        context = sum(gelu(c) for c in contexts)
        context = Dense(channels, name="context_out", **dense)(context)
        h = Dense(channels * self.expansion, name="fc1", **dense)(x)
        if self.expansion > 1:
            h = gelu(h)
        h = h * jnp.tile(context, (1, 1, 1, self.expansion))
        return Dense(x.shape[-1], name="fc2", **dense)(h)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"features": self.features or dim}
