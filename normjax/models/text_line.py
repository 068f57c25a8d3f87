"""Recognition of lines of text: stripes, halves near and far, attention (SVIPTR)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.models.base import MODELS, in_stages, patterns_of
from normjax.models.block import Block, feeding, mixing, sites_of
from normjax.models.layers import Factory
from normjax.models.local_global import LocalGlobalLayer, Permutation
from normjax.models.placement import placement_of


class HeightMerge(nn.Module):
    """norm(conv3x3(x)) with stride 2 along the height alone (SVIPTR).

    Attributes:
      dim: width of the result.  norm: factory.
      dtype: of the computation.
    """

    dim: int
    norm: Factory
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / 2), W, dim]."""
        given = {"strides": (2, 1), "padding": 1, "dtype": self.dtype}
        x = nn.Conv(self.dim, (3, 3), name="reduction", **given)(x)
        return self.norm(name="norm", dtype=self.dtype)(x, train=train)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return [FoldSite("norm", self.norm(parent=None), writer="reduction")]


@MODELS.register("text_line", "grid")
class TextLine(nn.Module):
    """Characters of a line of text, one of them or none per four columns (SVIPTR).

    A stem at a fourth of the size, stages whose merges halve the height alone, the mean
    over the height, and for each of the columns left

        head(hard_swish(W norm(x)))

    over the characters and the blank, class 0, for the CTC loss (Cheng et al., 2024;
    Graves et al., 2006). Stages of two mixers let half of the channels look near and
    half far, see `LocalGlobalLayer`.

    Attributes:
      num_classes: width of the logits, the blank among them.
      depths, dims, num_heads: of the stages.
      mlp_ratio: one for all or one per stage.
      norm, activation, mlp, stem: factories (see `models.build`, which takes keys).
      mixer: factories, one per stage; of two in a stage the first is that of the near
        half, the second, with half of the heads, that of the far half.
      embed_norm: factory of the norms in the stem, in the mixers and behind the halves.
      final_norm: factory of the last norm; None for `norm`.
      merges: stages that begin with a merge.
      hidden: width before the head.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: before the head.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build(
      ...     "text_line",
      ...     num_classes=11,
      ...     depths=(1, 1),
      ...     dims=(8, 16),
      ...     num_heads=(2, 2),
      ...     mixer=("softmax", "softmax"),
      ...     merges=(1,),
      ... )
      >>> images = jnp.zeros((2, 32, 64, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 16, 11)
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 3, 3)
    dims: tuple[int, ...] = (64, 128, 256)
    num_heads: tuple[int, ...] = (2, 4, 8)
    mlp_ratio: float | tuple[float, ...] = 4.0
    norm: Any = "layer_norm"
    mixer: Any = "softmax"
    activation: Any = "gelu"
    mlp: Any = "mlp"
    stem: Any = "conv_stack"
    embed_norm: Any = "batch_norm"
    final_norm: Any = None
    merges: tuple[int, ...] = (1, 2)
    hidden: int = 192
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What norms get to see."""
        return {"grid"}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixers of each stage get to see."""
        if not len(self.depths) == len(self.dims) == len(self.num_heads):
            raise UserError(
                f"depths {self.depths}, dims {self.dims} and num_heads "
                f"{self.num_heads} are not of one length"
            )
        for stage in range(1, len(self.dims)):
            if stage not in self.merges and self.dims[stage] != self.dims[stage - 1]:
                raise UserError(
                    f"stage {stage} has another width than the one before, and no merge"
                )
        return tuple({"grid"} for _ in self.depths)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, W / 4, num_classes], float32.

        Raises:
          UserError: a map that a mixer cannot partition, or more than two mixers in a
            stage.
        """
        x = self._stem(name="stem")(images, train=train)
        for stage, depth in enumerate(self.depths):
            if stage in self.merges:
                x = self._merge(stage, name=f"merge_{stage}")(x, train=train)
            if self._halves(stage):
                x = self._local_global(stage, name=f"halves_{stage}")(x, train)
                continue
            for i in range(depth):
                (mixer,) = self._mixers(stage)
                width = self.dims[stage]
                block = self._block(stage, i, mixer, width, name=f"blocks_{stage}_{i}")
                x = block(x, train)
        x = self._final_norm(name="norm")(x, train=train)
        x = jnp.mean(x, 1)
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = Dense(self.hidden, use_bias=False, name="neck", **dense)(x)
        x = nn.Dropout(self.dropout_rate)(jax.nn.hard_swish(x), deterministic=not train)
        logits = Dense(self.num_classes, name="head", **dense)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _final_norm(self, **where) -> nn.Module:
        norm = self.norm if self.final_norm is None else self.final_norm
        return norm(dtype=self.dtype, **where)

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        given = {"norm": self.embed_norm, "activation": self.activation}
        return self.stem(dim=self.dims[0], dtype=self.dtype, **given, **where)

    @nn.nowrap
    def _merge(self, stage: int, **where) -> HeightMerge:
        return HeightMerge(self.dims[stage], self.norm, dtype=self.dtype, **where)

    @nn.nowrap
    def _mixers(self, stage: int) -> tuple[Factory, ...]:
        mixers = patterns_of(self.mixer, len(self.depths))[stage]
        if len(mixers) > 2:
            raise UserError(f"stage {stage} has {len(mixers)} mixers: one or two")
        return mixers

    @nn.nowrap
    def _halves(self, stage: int) -> bool:
        return len(self._mixers(stage)) == 2

    @nn.nowrap
    def _block(
        self,
        stage: int,
        index: int,
        mixer: Factory,
        width: int,
        heads: int = 0,
        **where,
    ) -> Block:
        """A layer of a stage, or of a half of its channels."""
        layer, layers = sum(self.depths[:stage]) + index, sum(self.depths)
        placement = placement_of("pre").layer(layer, layers)
        mixer = with_defaults(
            mixer,
            num_heads=heads or self.num_heads[stage],
            norm=self.norm,
            reduction_norm=self.embed_norm,
            layer=layer,
            num_layers=layers,
            dtype=self.dtype,
        )
        ratio = in_stages(self.mlp_ratio, len(self.depths))[stage]
        known = {"activation": self.activation, "dtype": self.dtype}
        mlp = functools.partial(self.mlp, hidden=round(width * ratio), **known)
        norm = functools.partial(self.norm, dtype=self.dtype)
        rate = {"drop_path": self.drop_path_rate * layer / max(layers - 1, 1)}
        branches = (
            mixing(norm, mixer, placement, **rate),
            feeding(norm, mlp, placement, **rate),
        )
        return Block(branches, **where)

    @nn.nowrap
    def _local_global(self, stage: int, **where) -> LocalGlobalLayer:
        near, far = self._mixers(stage)
        half, heads = self.dims[stage] // 2, self.num_heads[stage]
        permutation = functools.partial(
            Permutation, self.embed_norm, self.activation, dtype=self.dtype
        )

        def blocks(mixer, heads):
            return functools.partial(self._half, stage, mixer, half, heads)

        return LocalGlobalLayer(
            blocks(near, heads),
            blocks(far, max(1, heads // 2)),
            self.depths[stage],
            permutation,
            **where,
        )

    @nn.nowrap
    def _half(self, stage: int, mixer: Factory, width: int, heads: int, **where):
        """A block of half of the channels; which one its name says."""
        index = int(where.get("name", "_0").rpartition("_")[2])
        return self._block(stage, index, mixer, width, heads, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        sites = list(sites_of("stem", self._stem(parent=None)))
        for stage, depth in enumerate(self.depths):
            if stage in self.merges:
                merge = self._merge(stage, parent=None)
                sites.extend(sites_of(f"merge_{stage}", merge))
            if self._halves(stage):
                layer = self._local_global(stage, parent=None)
                sites.extend(sites_of(f"halves_{stage}", layer))
                continue
            for i in range(depth):
                (mixer,) = self._mixers(stage)
                block = self._block(stage, i, mixer, self.dims[stage], parent=None)
                sites.extend(sites_of(f"blocks_{stage}_{i}", block))
        norm = self._final_norm(parent=None)
        return [*sites, FoldSite("norm", norm, readers=("neck",))]
