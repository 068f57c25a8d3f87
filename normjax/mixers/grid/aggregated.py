"""Attention to neighbours and a pooled map at once (TransNeXt)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.broadcast import along_last
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.gelu import gelu
from normjax.core.registry import Part
from normjax.mixers.base import MIXERS
from normjax.mixers.cosine import cosine_queries, log_spaced_bias
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, reduction_norm_of
from normjax.mixers.head_gates import head_gates
from normjax.mixers.ops.aggregated import aggregated_attention, shifted, unit
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.partition import pair, pooled_valid
from normjax.mixers.steps import dense_of


@MIXERS.register("aggregated", "grid", "mask")
class AggregatedAttention(nn.Module):
    """Cosine attention to neighbours and a pooled map (TransNeXt; Shi, 2024).

    With q', k' of length 1, r = norm(pool(gelu(W x))), k and v by one layer of x and r,

        q~ = (q' + e) softplus(t) log(n)
        (a, b) = softmax([q~ k'_near + R_near, q~ k'_pooled + R_pooled])
        y = proj((a + q' T + c) v_near + b v_pooled)

    per head: near are the w x w positions around, n the keys that a position sees; e,
    t, R_near, T and c are learned, R_pooled is an MLP of the log-spaced offset.
    O(L (w**2 + M) D) multiply-adds for M pooled positions. Softmax in at least float32.

    Attributes:
      window_size: w, odd.
      sr_ratio: by which the pooled map is smaller.
      pool_size: side of the pooled map, or (height, width), whatever the map ("linear
        inference"); None: that of x by `sr_ratio`.
      position_features: width of the MLP of R_pooled.
      trained_grid: rows and columns of the map at which the weights were trained; None
        for those of the input.
      reduction_norm: factory of the norm of the pooled map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = C / num_heads channels.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.AggregatedAttention(num_heads=2, sr_ratio=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["learnable_tokens"].shape
      ((1, 4, 4, 8), (2, 4, 9))
    """

    num_heads: int
    window_size: int = 3
    sr_ratio: int = 2
    pool_size: int | tuple[int, int] | None = None
    position_features: int = 512
    trained_grid: tuple[int, int] | None = None
    reduction_norm: Callable[..., nn.Module] | None = None
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    # One layer makes keys of the input and of the pooled map.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"reduction_norm": REDUCTION_NORM}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        return _fold_sites(self)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the pooled map is one if any that it is made of is.
          train: passed to `reduction_norm`.

        Raises:
          UserError: an even window, a map that does not reduce, or C does not split
            into heads.
        """
        o = merge_heads(_aggregate(self, x, mask, train))
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)


@MIXERS.register("aggregated_mixture_of_head", "grid", "mask")
class AggregatedMixtureOfHeadAttention(nn.Module):
    """`aggregated` whose heads are weighed per position (MoH; Jin et al., 2024).

    y = proj(g(x) * heads), with the gates g, and the load that is sown in training, of
    `mixture_of_head`. O(L (w**2 + M) D) multiply-adds. Gates and softmax in at least
    float32.

    Attributes:
      shared_heads: heads that always count.
      active_heads: of the others, so many count for a position; None for half of them,
        rounded up.
      window_size: w, odd.
      sr_ratio: by which the pooled map is smaller.
      pool_size: side of the pooled map, or (height, width), whatever the map; None:
        that of x by `sr_ratio`.
      position_features: width of the MLP of the bias.
      trained_grid: rows and columns of the map at which the weights were trained; None
        for those of the input.
      reduction_norm: factory of the norm of the pooled map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      qkv_bias: bias of the projections of queries and of keys and values.
      num_heads: heads; each has K = C / num_heads channels.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.AggregatedMixtureOfHeadAttention(num_heads=4, shared_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, [k for k in sorted(variables["params"]) if k.endswith("gate")]
      ((1, 4, 4, 8), ['routed_gate', 'shared_gate'])
    """

    num_heads: int
    shared_heads: int = 0
    active_heads: int | None = None
    window_size: int = 3
    sr_ratio: int = 2
    pool_size: int | tuple[int, int] | None = None
    position_features: int = 512
    trained_grid: tuple[int, int] | None = None
    reduction_norm: Callable[..., nn.Module] | None = None
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"reduction_norm": REDUCTION_NORM}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        return _fold_sites(self)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value. A position of
            the pooled map is one if any that it is made of is.
          train: passed to `reduction_norm`; sow the load.

        Raises:
          UserError: as of `aggregated`, or numbers of heads that do not fit.
        """
        o = _aggregate(self, x, mask, train)
        valid = None if mask is None else mask.reshape(len(x), -1)
        gates = head_gates(self, tokens_of(x), valid, train)
        gates = gates.reshape(*o.shape[:4], 1)
        o = merge_heads(o * gates.astype(o.dtype))
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)


def _fold_sites(module: Any) -> list[FoldSite]:
    if module.reduction_norm is None:
        return []
    norm, obstacle = module.reduction_norm(parent=None), "its reader reads the map, too"
    return [FoldSite("norm", norm, obstacle=obstacle)]


def _aggregate(
    module: Any, x: jax.Array, mask: jax.Array | None, train: bool
) -> jax.Array:
    """[B, H, W, h, K] of heads h before the projection."""
    batch, height, width, channels = x.shape
    heads, size = module.num_heads, module.window_size
    if size < 1 or size % 2 == 0:
        raise UserError(f"a window of {size}x{size} has no middle: its side is odd")
    x = only_valid(x, mask)
    dense = {"use_bias": module.qkv_bias, **dense_of(module)}
    q = split_heads(Dense(channels, name="q", **dense)(x), heads)
    kv = SplitDense(2, channels, name="kv", **dense)
    k, v = (split_heads(only_valid(t, mask), heads) for t in kv(x))
    small, seen = _pooled(module, x, mask, train)
    far_k, far_v = (split_heads(tokens_of(t), heads) for t in kv(small))
    valid = jnp.ones((1, height, width), bool) if mask is None else mask
    near_seen = jnp.stack(shifted(valid, size), -1)
    keys, rows = small.shape[1:3], None if seen is None else seen.reshape(batch, -1)
    count = jnp.sum(near_seen, -1)
    count = count + (
        far_k.shape[1] if rows is None else jnp.sum(rows, -1)[:, None, None]
    )
    q, asked = cosine_queries(module, q, count[..., None, None])
    own = _learned(module, heads, channels // heads, size * size, asked.dtype)
    near_bias, tokens, bias = own
    return aggregated_attention(
        asked,
        (unit(k), v),
        (unit(far_k), far_v),
        near_bias=near_bias,
        far_bias=log_spaced_bias(module, (height, width), keys, asked.dtype),
        extra=jnp.einsum("byxhk,hks->byxhs", q, tokens) + along_last(bias, q.ndim),
        near_seen=near_seen,
        far_seen=rows,
    ).astype(v.dtype)


def _learned(module: Any, heads: int, width: int, places: int, dtype: Any):
    """The bias, the tokens and the constant of the places around a position."""
    shapes = {
        "local_bias": (nn.initializers.truncated_normal(4e-4), (heads, places)),
        "learnable_tokens": (trunc_normal, (heads, width, places)),
        "learnable_bias": (nn.initializers.zeros, (heads, places)),
    }
    return (
        module.param(name, init, shape, module.param_dtype).astype(dtype)
        for name, (init, shape) in shapes.items()
    )


def _pooled(module: Any, x: jax.Array, mask: jax.Array | None, train: bool):
    """The normalised pooled map and its mask."""
    side = module.pool_size
    if side is None:
        side = tuple(n // module.sr_ratio for n in x.shape[1:3])
    side = pair(side)
    if not all(0 < s <= n for s, n in zip(side, x.shape[1:3], strict=True)):
        height, width = x.shape[1:3]
        raise UserError(
            f"a grid of {height}x{width} does not pool to {side[0]}x{side[1]} "
            "(sr_ratio, pool_size)"
        )
    dense = Dense(x.shape[-1], name="sr", **dense_of(module))
    h = only_valid(gelu(dense(x)), mask)
    small, mask = pooled_valid(h, side, mask)
    norm = reduction_norm_of(module)
    return norm(small.astype(h.dtype), mask=mask, train=train), mask
