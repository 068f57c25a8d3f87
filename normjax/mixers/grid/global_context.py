"""Windows that are asked by queries of the whole map (GC ViT)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.gelu import gelu
from normjax.core.moments import at_least_float32
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import highest, merge, pair, partition
from normjax.mixers.steps import (
    dense_of,
    depthwise_layer,
    normalized_maps,
    own_core,
)


class SqueezedConv(nn.Module):
    """W (s(h) h) with h = gelu(dwconv3x3(x)), s the squeeze of h: all without bias.

    s(h) = sigmoid(W_2 gelu(W_1 mean(h))), one factor a channel (Hatamizadeh et al.,
    2023).

    Attributes:
      reduction: by which the squeeze is narrower than the map.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    reduction: int = 4
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        width = x.shape[-1]
        dense = {"use_bias": False, **dense_of(self)}
        h = depthwise_layer(self, "dwc", x, (3, 3, width), use_bias=False)
        h = gelu(h)
        s = jnp.mean(at_least_float32(h), (1, 2), keepdims=True).astype(h.dtype)
        s = Dense(width // self.reduction or 1, name="squeeze", **dense)(s)
        s = gelu(s)
        s = jax.nn.sigmoid(Dense(width, name="excite", **dense)(s))
        return Dense(width, name="proj", **dense)(h * s)


class GlobalQueries(nn.Module):
    """The queries of a stage of GC ViT (Hatamizadeh et al., 2023): a map, made small.

    x + SqueezedConv(x), then the maximum of 3 x 3 with stride 2, again and again until
    the map is a window; a map that is one goes through x + SqueezedConv(x) once.

    Attributes:
      window: height and width of the result.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> queries = mixers.GlobalQueries(window=(2, 2))
      >>> x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
      >>> y, variables = queries.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 4), ['conv_0', 'conv_1'])
    """

    window: tuple[int, int]
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> [B, h, w, C].

        Raises:
          UserError: a map that halves past the window.
        """
        grid, step = x.shape[1:3], 0
        while x.shape[1:3] != self.window or not step:
            x = x + SqueezedConv(name=f"conv_{step}", **dense_of(self))(x)
            if x.shape[1:3] != self.window:
                x = highest(x, stride=2)
            if any(n < w for n, w in zip(x.shape[1:3], self.window, strict=True)):
                (height, width), (h, w) = grid, self.window
                raise UserError(
                    f"a grid of {height}x{width} does not halve to windows of {h}x{w}"
                )
            step += 1
        return x


@MIXERS.register("global_context", "grid", "mask")
class GlobalContextAttention(Mixer):
    """Attention inside windows, asked by the whole map (GC ViT; Hatamizadeh, 2023).

    Keys and values are those of a window, the queries are the same for all windows of
    an image: they come from the map by `GlobalQueries`, once for a stage. By default

        softmax(q k^T / sqrt(K) + R) v,  R_ij = table[yi - yj, xi - xj]

    per head and window, then a projection. O(L w**2 D) multiply-adds for windows of
    side w. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      window_size: side of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window.
      own_queries: make them of x where none are given; else a stage makes them once,
        of what it begins with (see `shared_layers`), as in GC ViT.
      qkv_bias: bias of the projection of keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GlobalContextAttention(num_heads=2, window_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])  # the queries are made of x
      ((1, 4, 4, 8), ['kv', 'proj', 'queries', 'relative_position_bias'])
      >>> queries = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))
      >>> sorted(mixer.init(jax.random.key(1), x, queries=queries)["params"])
      ['kv', 'proj', 'relative_position_bias']
    """

    core: Spec = "relative_softmax"
    window_size: int | tuple[int, int] = 7
    own_queries: bool = True
    qkv_bias: bool = True

    shared: ClassVar[tuple[str, ...]] = ("queries",)
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The convolution of an own generator sees zeros around the input."""
        return () if self.own_queries else ("kv",)

    @nn.nowrap
    def shared_layers(self, grid: tuple[int, ...]) -> dict[str, Callable[..., Any]]:
        """What the layers of a stage share, by the arguments of `shared`.

        Args:
          grid: of the stage.

        Returns:
          Factories of layers that are called with the map that the stage begins with.
        """
        if self.own_queries:
            return {}
        window = self._window(grid)
        return {"queries": functools.partial(GlobalQueries, window, **dense_of(self))}

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        queries: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. Tables fix the size of the window.

        Args:
          queries: [B, h, w, D], heads side by side, of a `GlobalQueries` that the
            blocks of a stage share; None: one of its own makes them of x.
          mask: bool [B, H, W]; False positions give no key and no value, and are 0 to
            the generator.
          train: passed to `qk_norm`.

        Raises:
          UserError: windows that do not cover the grid, queries of another shape,
            initialised for another window, or D does not split into heads.
        """
        window, grid = self._window(x.shape[1:3]), x.shape[1:3]
        core, width = own_core(self), self.qkv_features or x.shape[-1]
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        if queries is None and not self.own_queries:
            raise UserError(
                "mixer 'global_context' with own_queries=False got no queries"
            )
        if queries is None:
            make = GlobalQueries(window, name="queries", **dense_of(self))
            q = make(only_valid(x, mask))
            if width != x.shape[-1]:
                q = Dense(width, name="q", **dense)(q)
        else:
            q = queries
        if q.shape != (x.shape[0], *window, width):
            raise UserError(
                f"queries of {q.shape[1:]} for windows of "
                f"{window[0]}x{window[1]} with {width} channels"
            )
        mask = None if mask is None else partition(mask, window)
        k, v = SplitDense(2, width, name="kv", **dense)(partition(x, window))
        q = jnp.repeat(q.astype(k.dtype), len(k) // len(x), 0)
        q, k = normalized_maps(self, q, k, mask, train)
        o = core(q, k, v, mask=mask)
        return merge(Dense(x.shape[-1], name="proj", **dense_of(self))(o), grid)

    @nn.nowrap
    def _window(self, grid: tuple[int, ...]) -> tuple[int, int]:
        h, w = pair(self.window_size)
        side = min(grid)
        return (side, side) if h == w and side <= h else (h, w)
