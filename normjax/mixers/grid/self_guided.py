"""Attention to tokens merged by significance, and where that comes from (SG-Former)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, reduced_map
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_tokens, only_valid
from normjax.mixers.ops.partition import merge, pair, partition
from normjax.mixers.ops.significance import grouped, received
from normjax.mixers.steps import (
    attend,
    core_of,
    dense_of,
    depthwise_layer,
    normalized_heads,
)

Carry = Mapping[str, Any]
SIGNIFICANCE = "significance"
"""In the carry of a stage: two maps [B, H, W], to sort rows and to sort columns by."""


@MIXERS.register("self_guided", "grid", "mask")
class SelfGuidedAttention(Mixer):
    """Attention to tokens merged by their significance (SG-Former; Ren et al., 2023).

    The positions are sorted by significance, row by row and again column by column, and
    merged in groups: the least significant quarter in groups of f_1, the middle half of
    f_2, the last quarter of f_3, by a learned weight for each place of a group.

        softmax(q(x) k^T / sqrt(K)) v,  k and v of the merged tokens
        y = proj(heads + dwconv3x3(W x))

    Heads of the first half see the tokens of rows, the others those of columns. The
    significance is that of a `self_guided_hybrid` before it in the stage, which the
    block carries; without one all are equal and groups are runs of positions.
    O(L M D) multiply-adds for M merged tokens. Softmax in at least float32.

    Attributes:
      group_sizes: (f_1, f_2, f_3); or of two halves.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads, an even number; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SelfGuidedAttention(num_heads=2, group_sizes=(4, 2, 1))
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["group_1"]["kernel"].shape
      ((1, 4, 4, 8), (4, 1))
    """

    group_sizes: tuple[int, ...] = (49, 14, 7)
    qkv_bias: bool = True

    # Merged tokens are sums of weights that are not 1, and the convolution has zeros
    # around the map.
    reads: ClassVar[tuple[str, ...]] = ()
    carries: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        carry: Carry | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        """x: [B, H, W, C] -> same; (same, carry) where there is a carry.

        Args:
          carry: of the stage; its "significance" are two maps [B, H, W], by which the
            positions are sorted row by row and column by column.
          mask: bool [B, H, W]; False positions are 0 and the least significant, and
            groups of nothing else give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: positions that do not split into groups, an odd number of heads, or
            D does not split into heads.
        """
        width, x = self.qkv_features or x.shape[-1], only_valid(x, mask)
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        half = _half(self, width)
        equal = jnp.zeros(x.shape[:3], jnp.float32)
        maps = (carry or {}).get(SIGNIFICANCE, (equal, equal))
        groups = [
            Dense(1, name=f"group_{i + 1}", **dense_of(self))
            for i in range(len(self.group_sizes))
        ]
        keys, values, seen = [], [], []
        for name, turned, by in (("kv1", False, maps[0]), ("kv2", True, maps[1])):
            tokens, valid = self._merged(x, by, mask, turned, groups)
            for made, t in zip(
                (keys, values),
                SplitDense(2, width // 2, name=name, **dense)(tokens),
                strict=True,
            ):
                made.append(split_heads(t, half))
            seen.append(valid)
        q = split_heads(Dense(width, name="q", **dense)(tokens_of(x)), self.num_heads)
        k, v = (jnp.concatenate(t, -2) for t in (keys, values))
        rows = None if mask is None else mask.reshape(len(x), -1)
        q, k = normalized_heads(self, q, k, query_mask=rows, train=train)
        visible = None
        if mask is not None:
            visible = jnp.repeat(jnp.stack(seen, 1), half, 1)[:, :, None]
        o = merge_heads(attend(self, q, k, v, mask=visible))
        o = o.reshape(*x.shape[:3], -1) + enhanced(self, x, width)
        y = Dense(x.shape[-1], name="proj", **dense_of(self))(o)
        return y if carry is None else (y, carry)

    def _merged(self, x, significance, mask, turned, groups):
        """Tokens [B, M, C] of rows, or of columns, and which of them are any."""

        def rows(t):
            t = jnp.swapaxes(t, 1, 2) if turned else t
            return t.reshape(t.shape[0], -1, *t.shape[3:])

        if mask is not None:
            significance = jnp.where(mask, significance, -jnp.inf)
        significance = rows(significance)
        parts = grouped(rows(x), significance, self.group_sizes)
        tokens = [
            layer(jnp.swapaxes(part, 2, 3))[..., 0]
            for layer, part in zip(groups, parts, strict=True)
        ]
        if mask is None:
            return jnp.concatenate(tokens, 1), None
        valid = grouped(rows(mask)[..., None], significance, self.group_sizes)
        seen = jnp.concatenate([jnp.any(t, (2, 3)) for t in valid], 1)
        return only_tokens(jnp.concatenate(tokens, 1), seen), seen


@MIXERS.register("self_guided_hybrid", "grid", "mask")
class SelfGuidedHybridAttention(nn.Module):
    """Attention to a reduced map and in windows (SG-Former; Ren et al., 2023).

        r = gelu(norm(conv_RxR(x))),  y = proj([core(q1, k(r), v(r)), core(q2, k, v)]
                                               + dwconv3x3(W x))

    Half of the heads attends to r, half inside windows of the map. What it writes in
    the carry of its stage is the significance of the positions, the mean weight that
    they get in softmax(q k^T / sqrt(K)) of both, without gradient: `self_guided` merges
    by it. O(L (L / R**2 + w**2) D) multiply-adds. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` that takes other keys than queries
        ("softmax", "sla", "focused_linear"), a dict with `name` and arguments, or a
        factory.
      window_size: side w of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window.
      sr_ratio: R, size and stride of the convolution.
      reduction_norm: factory of the norm of the smaller map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads, an even number; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SelfGuidedHybridAttention(num_heads=2, window_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> (y, carry), _ = jax.eval_shape(
      ...     lambda x: mixer.init_with_output(jax.random.key(1), x, carry={}), x
      ... )
      >>> y.shape, carry["significance"][0].shape
      ((1, 4, 4, 8), (1, 4, 4))
    """

    num_heads: int
    core: Spec = "softmax"
    window_size: int | tuple[int, int] = 7
    sr_ratio: int = 2
    reduction_norm: Callable[..., nn.Module] | None = None
    qkv_bias: bool = True
    qkv_features: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    carries: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
        "reduction_norm": REDUCTION_NORM,
    }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.reduction_norm is None:
            return []
        return [FoldSite("norm", self.reduction_norm(parent=None), writer="sr")]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        carry: Carry | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        """x: [B, H, W, C] -> same; (same, carry) where there is a carry.

        Args:
          carry: of the stage; the new one has the "significance" as well, twice the
            same map [B, H, W].
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the smaller map is one if any that it is made of is.
          train: passed to `reduction_norm`.

        Raises:
          UserError: a map that does not reduce or that windows do not cover, an odd
            number of heads, or D does not split into heads.
        """
        width, x = self.qkv_features or x.shape[-1], only_valid(x, mask)
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        half = _half(self, width)
        core = core_of(self, num_heads=half)
        small, seen = reduced_map(self, x, mask, width, train)
        small = gelu(small)
        q1 = Dense(width // 2, name="q1", **dense)(x)
        k1, v1 = SplitDense(2, width // 2, name="kv1", **dense)(small)
        o = core(name="whole")(q1, k1, v1, mask=seen)
        window, grid = self._window(x.shape[1:3]), x.shape[1:3]
        inside = None if mask is None else partition(mask, window)
        q2 = Dense(width // 2, name="q2", **dense)(x)
        k2, v2 = SplitDense(2, width // 2, name="kv2", **dense)(x)
        q2, k2, v2 = (partition(t, window) for t in (q2, k2, v2))
        near = merge(core(name="windows")(q2, k2, v2, mask=inside), grid)
        o = jnp.concatenate((o, near), -1) + enhanced(self, x, width)
        y = Dense(x.shape[-1], name="proj", **dense_of(self))(o)
        if carry is None:
            return y
        far = _received(q1, k1, half, seen, mask)
        far = jnp.repeat(jnp.repeat(far, self.sr_ratio, 1), self.sr_ratio, 2)
        near = merge(_received(q2, k2, half, inside, inside), grid)
        return y, {**carry, SIGNIFICANCE: (far + near, far + near)}

    @nn.nowrap
    def _window(self, grid: tuple[int, ...]) -> tuple[int, int]:
        (h, w), side = pair(self.window_size), min(grid)
        return (side, side) if h == w and side <= h else (h, w)


def _half(module: Any, width: int) -> int:
    """Half of the heads."""
    if module.num_heads % 2 or width % max(module.num_heads, 1):
        raise UserError(
            f"{module.num_heads} heads of {width} channels do not split into two halves"
        )
    return module.num_heads // 2


def enhanced(module: Any, x: jax.Array, width: int) -> jax.Array:
    """dwconv3x3(W x): what is near, added to what attention gives."""
    h = Dense(width, name="lepe_in", **dense_of(module))(x)
    return depthwise_layer(module, "lepe", h, (3, 3, width))


def _received(q, k, heads, mask, query_mask):
    """`received` of maps: [B, H', W']."""
    query, key = (split_heads(tokens_of(t), heads) for t in (q, k))
    seen, asked = (
        None if m is None else m.reshape(len(m), -1) for m in (mask, query_mask)
    )
    return received(query, key, seen, asked).reshape(k.shape[:3])
