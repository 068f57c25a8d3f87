"""Shifted channels and convolutions of several sizes (MS-MLP)."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.ranges import POSITIVE, Range
from normjax.core.registry import Part
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, norm_of
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of, depthwise_layer


@MIXERS.register("mix_shift", "grid", "mask")
class MixShift(nn.Module):
    """Shifts and depthwise convolutions, then an MLP (MS-MLP; Zheng et al., 2022).

    The channels are cut into as many chunks as there are shifts. Chunk i is shifted by
    d_i columns, and by d_i rows, each time followed by a convolution of its own:

        m_i = conv(x_i shifted along rows) + conv'(x_i shifted along columns)
        y = W2 gelu(W1 norm(m) + b1) + b2

    Shifts are circular: what leaves on one side enters on the other. O(mlp_ratio L
    C**2 + k**2 L C) multiply-adds with kernels k x k.

    Attributes:
      shifts: d_i.  kernel_sizes: of the convolutions, odd, as many as shifts.
      mlp_ratio: width of the MLP, in multiples of C.
      norm: factory of the norm before the MLP; None for LayerNorm with epsilon 1e-5. A
        model gives its own.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.MixShift(shifts=(-1, 1), kernel_sizes=(1, 3))
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> variables["params"]["columns_1_kernel"].shape
      (3, 3, 4)
    """

    shifts: tuple[int, ...] = (-2, -1, 0, 1, 2)
    kernel_sizes: tuple[int, ...] = (1, 1, 3, 5, 7)
    mlp_ratio: float = 4.0
    norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    # Convolutions read the input, with zeros around the map.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "fc2"
    parts: ClassVar[Mapping[str, Part]] = {"norm": REDUCTION_NORM}
    ranges: ClassVar[Mapping[str, Range]] = {"kernel_sizes": POSITIVE}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.norm is None:
            return []
        return [FoldSite("norm", self.norm(parent=None), readers=("fc1",))]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions count as 0.
          train: passed to the norm.

        Raises:
          UserError: another number of kernel sizes than of shifts, or an even size.
        """
        count = len(self.shifts)
        odd = all(size % 2 for size in self.kernel_sizes)
        if not count or count != len(self.kernel_sizes) or not odd:
            raise UserError(
                "mixer 'mix_shift': kernel_sizes must be as many odd numbers as there "
                f"are shifts {self.shifts}, got {self.kernel_sizes}"
            )
        channels = x.shape[-1]
        width = -(-channels // count)
        parts = jnp.split(only_valid(x, mask), tuple(range(width, channels, width)), -1)
        mixed = []
        chosen = zip(parts, self.shifts, self.kernel_sizes, strict=False)
        for i, (part, shift, size) in enumerate(chosen):
            shape = (size, size, part.shape[-1])
            row, column = (
                depthwise_layer(self, f"{name}_{i}", jnp.roll(part, shift, axis), shape)
                for name, axis in (("rows", 2), ("columns", 1))
            )
            mixed.append(row + column)
        y = jnp.concatenate(mixed, -1)
        y = norm_of(self, self.norm)(y, mask=mask, train=train)
        hidden = max(1, round(self.mlp_ratio * channels))
        y = Dense(hidden, name="fc1", **dense_of(self))(y)
        y = gelu(y)
        return Dense(channels, name="fc2", **dense_of(self))(y)
