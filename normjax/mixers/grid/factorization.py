"""Attention to the whole map and to means of windows (FaViT)."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, reduced_map
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.ops.window_means import AVERAGES, window_means
from normjax.mixers.steps import core_of, dense_of, depthwise_layer


@MIXERS.register("factorization", "grid", "mask")
class FactorizationAttention(nn.Module):
    """Attention to a reduced map and to means of windows (FaViT; Qin et al., 2023).

    The channels split into 1 : 7 parts of 8, or 2 : 7 : 7 of 16 where R = `sr_ratio` is
    larger than 1. The first part attends with one head to the map reduced by R, the
    others with `num_heads` to the w x w places of windows, means over all windows of a
    map l = W dwconv3x3(x), which are dense in the second part and spread by R in the
    third:

        k, v = W' W'' mean of windows,   y = proj([core(q, k, v + dwconv3x3(v)), ...])

    O(L (L / R**2 + w**2) C) multiply-adds. Softmax in at least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES` that takes other keys than queries
        ("softmax", "sla", "focused_linear"), a dict with `name` and arguments, or a
        factory.
      averaging: "paper" for means of each channel over the windows; "code" for what the
        released code does: it averages neighbours among the channels of all windows in
        a row, which is the same where there is one window.
      window_size: w.
      sr_ratio: R.
      reduction_norm: factory of the norm of the reduced map; None for LayerNorm with
        epsilon 1e-5. A model gives its own.
      qkv_bias: bias of the projections of queries, keys and values.
      num_heads: heads of the other parts.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.FactorizationAttention(num_heads=7, window_size=3)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["kv"]["kernel"].shape
      ((1, 4, 4, 8), (1, 2))
    """

    num_heads: int
    core: Spec = "softmax"
    averaging: str = "code"
    window_size: int = 7
    sr_ratio: int = 1
    reduction_norm: Callable[..., nn.Module] | None = None
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
        "reduction_norm": REDUCTION_NORM,
    }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.reduction_norm is None:
            return []
        norm = self.reduction_norm(parent=None)
        return [FoldSite("norm", norm, readers=("kv",))]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of the core fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value of the reduced
            map, and count as 0 in the means.
          train: passed to `reduction_norm`.

        Raises:
          UserError: channels that do not split, a map that does not reduce or that is
            too small for its windows, an unknown average.
        """
        if self.averaging not in AVERAGES:
            raise UserError(one_of("averaging", self.averaging, AVERAGES))
        width, *groups = self._split(x.shape[-1])
        x, dense = only_valid(x, mask), dense_of(self)
        q = Dense(x.shape[-1], use_bias=self.qkv_bias, name="q", **dense)(x)
        outputs = [self._whole(q[..., :width], x[..., :width], mask, train)]
        local = x[..., width:]
        local = depthwise_layer(self, "local", local, (3, 3, local.shape[-1]))
        local = Dense(local.shape[-1], name="local_point", **dense)(local)
        local = only_valid(local, mask)
        heads, first = split_heads(q[..., width:], self.num_heads), 0
        for i, size in enumerate(groups):
            each, begin = size // self.num_heads, first // self.num_heads
            query = merge_heads(heads[..., begin : begin + each])
            part = local[..., first : first + size]
            outputs.append(self._windows(query, part, i))
            first += size
        o = jnp.concatenate(outputs, -1)
        return Dense(x.shape[-1], name="proj", **dense)(o)

    @nn.nowrap
    def _split(self, width: int) -> tuple[int, ...]:
        """Channels of the parts."""
        shares = (2, 7, 7) if self.sr_ratio > 1 else (1, 7)
        unit, rest = divmod(width, sum(shares))
        if rest or unit < 1 or 7 * unit % self.num_heads:
            raise UserError(
                f"{width} channels do not split as {shares} into {self.num_heads} heads"
            )
        return tuple(share * unit for share in shares)

    def _whole(
        self, q: jax.Array, x: jax.Array, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        """The first part, with one head."""
        width = x.shape[-1]
        small, seen = reduced_map(self, x, mask, width, train)
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        k, v = SplitDense(2, width, name="kv", **dense)(small)
        v = only_valid(v, seen)
        v = v + depthwise_layer(self, "whole_value", v, (3, 3, width))
        return core_of(self, num_heads=1)(name="whole")(q, k, v, mask=seen)

    def _windows(self, q: jax.Array, x: jax.Array, number: int) -> jax.Array:
        """A part of q [B, H, W, D] with keys of x [B, H, W, D]."""
        dilation, width = self.sr_ratio if number else 1, x.shape[-1]
        means = window_means(
            x, self.window_size, dilation, self.num_heads, self.averaging
        )
        each, name = width // self.num_heads, f"windows_{number}"
        dense = {"use_bias": self.qkv_bias, **dense_of(self)}
        h = Dense(each, name=f"{name}_mean", **dense)(means)
        k, v = map(merge_heads, SplitDense(2, each, name=f"{name}_kv", **dense)(h))
        v = v + depthwise_layer(self, f"{name}_value", v, (3, 3, width))
        return core_of(self)(name=name)(q, k, v)
