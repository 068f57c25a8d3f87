"""Attention inside windows of a feature map (Swin)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.materialize import materialized
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.partition import Windows, padded
from normjax.mixers.steps import dense_of, normalized_maps, own_core, project


@MIXERS.register("window", "grid", "mask")
class WindowAttention(Mixer):
    """Attention inside windows, which may be shifted (Swin; Liu et al., 2021).

    By default softmax with a bias by offset,

        softmax(q k^T / sqrt(K) + R) v,  R_ij = table[yi - yj, xi - xj]

    per head and window, then a projection. In shifted windows, positions that meet
    only because the shift is cyclic get -100 more. O(L w**2 D) multiply-adds for
    windows of side w. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      window_size: side of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window and nothing is shifted.
      shift: rows and columns by which the windows are moved, cyclically; None for half
        a window in odd layers and 0 in even ones.
      layer: number of the layer, which a model gives.
      pad: where windows do not cover the grid, zeros stand on its right and below, and
        take part; windows keep their size on smaller grids as well.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.WindowAttention(num_heads=2, window_size=2, shift=1)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['proj', 'qkv', 'relative_position_bias']
    """

    core: Spec = "relative_softmax"
    window_size: int | tuple[int, int] = 7
    shift: int | None = None
    layer: int = 0
    pad: bool = False
    qkv_bias: bool = True

    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Zeros that take part are read behind the norm, too."""
        return () if self.pad else ("qkv",)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. Tables fix the size of the window.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`; in training maps are whole only where a TPU has
            a kernel for their gradients.

        Raises:
          UserError: windows that do not cover the grid, a shift beyond the window,
            initialised for another window, or D does not split into heads.
        """
        windows = Windows(*self._geometry(x.shape[1:3]))
        core, (height, width) = own_core(self), x.shape[1:3]
        if self.pad:
            x = padded(x, windows.size)
            mask = None if mask is None else padded(mask, windows.size, True)
        proj = Dense(x.shape[-1], name="proj", **dense_of(self))
        if self._whole(core, x, mask, windows, train):
            y = proj(core(*project(self, materialized(x)), mask=mask, windows=windows))
        else:
            inside = None if mask is None else windows.cut(mask)
            q, k, v = project(self, windows.cut(x))
            q, k = normalized_maps(self, q, k, inside, train)
            regions = windows.regions(x.shape[1:3])
            o = core(q, k, v, mask=inside, regions=regions)
            y = windows.joined(proj(o), x.shape[1:3])
        return y[:, :height, :width] if self.pad else y

    @nn.nowrap
    def _whole(self, core, x, mask, windows: Windows, train: bool) -> bool:
        takes = getattr(core, "takes_windows", None)
        if takes is None or self.qk_norm is not None or (train and mask is not None):
            return False
        dtype = self.dtype or jnp.result_type(x, self.param_dtype)
        shape = *x.shape[:-1], self.qkv_features or x.shape[-1]
        return takes(jax.ShapeDtypeStruct(shape, dtype), windows, train)

    @nn.nowrap
    def _geometry(self, grid: tuple[int, ...]) -> tuple[tuple[int, int], int]:
        size = self.window_size
        height, width = (size, size) if isinstance(size, int) else size
        if height == width and min(grid) <= height and not self.pad:
            return (min(grid), min(grid)), 0
        side = min(height, width)
        shift = (side // 2) * (self.layer % 2) if self.shift is None else self.shift
        if not 0 <= shift < side:
            raise UserError(
                f"shift {shift} of windows of {height}x{width}: it must be between 0 "
                f"and {side - 1}"
            )
        return (height, width), shift


@MIXERS.register("window_sla", "grid", "mask")
class WindowSimplifiedLinearAttention(WindowAttention):
    """`sla` inside windows (SLAB-Swin; Guo et al., 2024).

    The table of positions is that of a window. Shifted windows mix the positions that
    meet only because the shift is cyclic, as published; SLAB never shifts them.
    O(L K D) multiply-adds whatever the window.

    Attributes:
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      window_size: side of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window and nothing is shifted.
      shift: rows and columns by which the windows are moved, cyclically; None for half
        a window in odd layers and 0 in even ones.
      layer: number of the layer, which a model gives.
      pad: where windows do not cover the grid, zeros stand on its right and below, and
        take part; windows keep their size on smaller grids as well.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("window_sla", num_heads=2, window_size=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.WindowSimplifiedLinearAttention
      True
      >>> y.shape, variables["params"]["qkv"]["kernel"].shape
      ((1, 4, 4, 8), (8, 24))
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "sla"  # pyright: ignore[reportIncompatibleVariableOverride]


@MIXERS.register("window_focused_linear", "grid", "mask")
class WindowFocusedLinearAttention(WindowAttention):
    """`focused_linear` inside windows (FLatten-Swin; Han et al., 2023).

    The table of positions is that of a window. Shifted windows mix the positions that
    meet only because the shift is cyclic, as published. O(L K D) multiply-adds whatever
    the window.

    Attributes:
      focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      window_size: side of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window and nothing is shifted.
      shift: rows and columns by which the windows are moved, cyclically; None for half
        a window in odd layers and 0 in even ones.
      layer: number of the layer, which a model gives.
      pad: where windows do not cover the grid, zeros stand on its right and below, and
        take part; windows keep their size on smaller grids as well.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("window_focused_linear", num_heads=2, window_size=2)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> type(mixer) is mixers.WindowFocusedLinearAttention
      True
      >>> y.shape, variables["params"]["qkv"]["kernel"].shape
      ((1, 4, 4, 8), (8, 24))
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "focused_linear"  # pyright: ignore[reportIncompatibleVariableOverride]
