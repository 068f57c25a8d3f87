"""Pyramid transformers: Swin, PVT, CSwin and what they become with other parts."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations import SiLU
from normjax.core.broadcast import mean_over_positions, repeat_over_batch
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.mixers.steps import sized_table
from normjax.models.base import MODELS, in_stages, patterns_of
from normjax.models.block import Block, sites_of
from normjax.models.blocks import Layer
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory
from normjax.models.mlps import MLP
from normjax.models.placement import Placement, placement_of
from normjax.models.positions import INITIAL_TABLES
from normjax.models.remat import recomputed

POOLS = ("mean", "cls", "mean_first")


@MODELS.register("pyramid", "grid")
class Pyramid(nn.Module):
    """Transformer on maps that shrink from stage to stage.

    Swin (Liu et al., 2021), PVT (Wang et al., 2021) and CSwin (Dong et al., 2022) are
    settings of it; see `normjax.families`. A stage is an embedding (the stem, then
    merges), a table of positions if asked for, and blocks.

    Attributes:
      num_classes: width of the logits.
      depths, dims, num_heads: of the stages.
      mlp_ratio: one for all or one per stage.
      norm, activation: factories (see `models.build`, which takes keys).
      mixer, mlp: factories, or one per stage; several of a stage are those of its
        layers in turn. A layer without MLP has None in its place.
      stem, merge: factories of the first embedding and of the later ones; several
        merges are those of the stages from the second on.
      branches: those of a layer, patterns as of `mixer`; a key of `models.BLOCKS`.
      embed_norm: factory of the norms in stem, merges and mixers; None for `norm`.
      final_norm: factory of the last norm; None for `norm`.
      mlp_norm: factory of the norm of the MLPs; None for `norm`.
      stage_norm: a norm ends every stage (TransNeXt), not only the last one.
      layer_scale: first value of a factor per channel on what the branches of a layer
        give, patterns as of `mixer`; None for no such factor.
      position_conv: "mixer" and "mlp" have a branch x + dwconv3x3(x) before them
        (DaViT), if they are named here.
      pos_embed: learn a table of positions, which fixes the size of the images; one for
        all or one per stage. "sine" lets it start as sines and cosines. Sides of square
        tables do not: other maps take what is between their positions, bilinearly
        (iFormer).
      last_width: width of silu(norm(x W + b)), made of every position before the mean,
        with the `embed_norm` (STViT, RAVLT); None for nothing there.
      pool: "mean" averages the tokens behind the last norm, "mean_first" before it;
        "cls" reads a class token, which joins in the last stage, whose mixer sees a
        sequence (PVT).
      pooled_block: a layer on the mean of the tokens as a map of one position, with the
        last mixer and an MLP, before the last norm; a key of `models.BLOCKS`.
      distilled: a second head, `head_dist`, whose logits are averaged with the first.
      pad: where a map does not divide by a stride or a window, zeros stand on its right
        and below; else it is refused. They keep the norms before them from folding.
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build(
      ...     "pyramid",
      ...     num_classes=10,
      ...     depths=(1, 1),
      ...     dims=(8, 16),
      ...     num_heads=(2, 2),
      ...     mixer=("sla", "whole_map"),  # one a stage
      ... )
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)
    """

    num_classes: int
    depths: tuple[int, ...] = (2, 2, 6, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float | tuple[float, ...] = 4.0
    norm: Any = "layer_norm"
    mixer: Any = "window"
    activation: Any = "gelu"
    mlp: Any = "mlp"
    stem: Any = "conv_norm"
    merge: Any = "patch_merge"
    branches: Any = "transformer"
    embed_norm: Any = None
    final_norm: Any = None
    mlp_norm: Any = None
    stage_norm: bool = False
    layer_scale: Any = None
    position_conv: tuple[str, ...] = ()
    pos_embed: bool | int | str | tuple[bool | int | str, ...] = False
    last_width: int | None = None
    pool: str = "mean"
    pooled_block: Any = None
    distilled: bool = False
    pad: bool = False
    placement: str | Placement = "pre"
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        return set.union(*self.mixer_layouts())

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer of each stage gets to see."""
        if self.pool not in POOLS:
            raise UserError(f"pool {self.pool!r} is none of {', '.join(POOLS)}")
        if not len(self.depths) == len(self.dims) == len(self.num_heads):
            raise UserError(
                f"depths {self.depths}, dims {self.dims} and num_heads "
                f"{self.num_heads} are not of one length"
            )
        last = "seq" if self.pool == "cls" else "grid"
        unknown = set(self.position_conv) - {"mixer", "mlp"}
        if unknown:
            raise UserError(one_of("position_conv", min(unknown), ("mixer", "mlp")))
        return (*({"grid"} for _ in self.depths[:-1]), {last})

    @nn.nowrap
    def patterned(self) -> set[str]:
        """The components that differ from layer to layer."""
        return {"mixer", "mlp", "branches"}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32.

        Raises:
          UserError: a map that does not merge or that the mixer cannot partition, or
            tables made for images of another size.
        """
        placement, x = placement_of(self.placement), images
        for stage, depth in enumerate(self.depths):
            name = f"merge_{stage}" if stage else "stem"
            x = self._embed(stage, name=name)(x, train=train)
            x = self._positions(x, stage)
            if placement.embedding and not stage:
                x = self.norm(name="embed_norm", dtype=self.dtype)(x, train=train)
            carry, shared = {}, self._shared(stage, x)
            for i in range(depth):
                block = self._block(stage, i, name=f"blocks_{stage}_{i}")
                x, carry = block(x, train, context=shared, carry=carry)
            if self.stage_norm and stage < len(self.depths) - 1:
                x = self.norm(name=f"norm_{stage}", dtype=self.dtype)(x, train=train)
        if self.last_width is not None:
            x = self._last(name="last")(x, train=train)
        x = self._pooled(x, train)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        each = [Dense(self.num_classes, name=n, **init)(x) for n in self._heads()]
        logits = each[0] if len(each) == 1 else sum(each) / len(each)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _pooled(self, x: jax.Array, train: bool) -> jax.Array:
        """What the heads read, [B, C]."""
        if self.pool == "mean_first":
            x = mean_over_positions(x).reshape(x.shape[0], 1, 1, -1)
        if self.pooled_block is not None:
            x = self._pooled_block(name="pooled")(x, train)
        if placement_of(self.placement).final:
            x = self._final_norm(name="norm")(x, train=train)
        return x[:, 0] if self.pool == "cls" else mean_over_positions(x)

    @nn.nowrap
    def _heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    def _positions(self, x: jax.Array, stage: int) -> jax.Array:
        """Add the class token, if it joins here, and the table of positions."""
        if self.pool == "cls" and stage == len(self.depths) - 1:
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            token = self.param("cls_token", trunc_normal, (1, 1, x.shape[-1]))
            token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        chosen = in_stages(self.pos_embed, len(self.depths))[stage]
        if not chosen:
            return x
        name, what, shape = f"pos_embed_{stage}", "table of positions", x.shape[1:]
        if isinstance(chosen, int) and not isinstance(chosen, bool):
            if chosen < 1:
                raise UserError(f"pos_embed {chosen}: a table has a side of at least 1")
            table = self.param(name, trunc_normal, (chosen, chosen, shape[-1]))
            table = jax.image.resize(table, shape, "bilinear", antialias=False)
        elif chosen in INITIAL_TABLES:
            table = sized_table(self, name, shape, INITIAL_TABLES[chosen], what)
        else:
            raise UserError(one_of("pos_embed", chosen, ("sine",)))
        return x + repeat_over_batch(table.astype(x.dtype), x.shape[0])

    @nn.nowrap
    def _first_scale(self, stage: int, index: int) -> float | None:
        scale = self._of_layer(self.layer_scale, stage, index)
        if not isinstance(scale, int | float | None):
            kind = type(scale).__name__
            raise UserError(f"layer_scale takes a number or None, got a {kind}")
        return scale

    def _shared(self, stage: int, x: jax.Array) -> dict[str, jax.Array]:
        """What the mixers of a stage are told that is made of its input once."""
        layers: dict[str, Factory] = {}
        for i in range(self.depths[stage]):
            mixer = self._mixer(stage, i)(parent=None)
            if hasattr(mixer, "shared_layers"):
                layers |= mixer.shared_layers(x.shape[1:3])
        return {what: make(name=f"{what}_{stage}")(x) for what, make in layers.items()}

    @nn.nowrap
    def _embed_norm(self) -> Factory:
        return self.norm if self.embed_norm is None else self.embed_norm

    @nn.nowrap
    def _final_norm(self, **where) -> nn.Module:
        norm = self.norm if self.final_norm is None else self.final_norm
        return norm(dtype=self.dtype, **where)

    @nn.nowrap
    def _last(self, **where) -> ConvUnit:
        return ConvUnit(
            self.last_width or 0,
            self._embed_norm(),
            SiLU,
            kernel_size=1,
            use_bias=True,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _embed(self, stage: int, **where) -> nn.Module:
        merges = in_stages(self.merge, len(self.depths) - 1)
        make = merges[stage - 1] if stage else self.stem
        return with_defaults(make, pad=self.pad)(
            dim=self.dims[stage],
            norm=self._embed_norm(),
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _mixer(self, stage: int, index: int) -> Factory:
        mixer = with_defaults(
            self._of_layer(self.mixer, stage, index),
            num_heads=self.num_heads[stage],
            norm=self.norm,
            reduction_norm=self._embed_norm(),
            layer=sum(self.depths[:stage]) + index,
            num_layers=sum(self.depths),
            pad=self.pad,
        )
        return functools.partial(mixer, dtype=self.dtype)

    @nn.nowrap
    def _mlp(self, stage: int, index: int) -> Factory | None:
        mlp = self._of_layer(self.mlp, stage, index)
        if mlp is None:
            return None
        ratio = in_stages(self.mlp_ratio, len(self.depths))[stage]
        known = {"activation": self.activation, "dtype": self.dtype}
        return functools.partial(mlp, hidden=round(self.dims[stage] * ratio), **known)

    @nn.nowrap
    def _of_layer(self, value: Any, stage: int, index: int) -> Any:
        """What a layer has of patterns."""
        pattern = patterns_of(value, len(self.depths))[stage]
        return pattern[index % len(pattern)]

    @nn.nowrap
    def _block(self, stage: int, index: int, **where) -> Block:
        block = self._of_layer(self.branches, stage, index)
        branches = block().branches(self._layer(stage, index))
        return recomputed(Block, self.remat)(branches, **where)

    @nn.nowrap
    def _pooled_block(self, **where) -> Block:
        layer = self._layer(len(self.depths) - 1, self.depths[-1] - 1)
        known = {"activation": self.activation, "dtype": self.dtype}
        mlp = functools.partial(MLP, hidden=layer.hidden, **known)
        return Block(self.pooled_block().branches(layer._replace(mlp=mlp)), **where)

    @nn.nowrap
    def _layer(self, stage: int, index: int) -> Layer:
        layer, layers = sum(self.depths[:stage]) + index, sum(self.depths)
        ratio = in_stages(self.mlp_ratio, len(self.depths))[stage]
        first, last = placement_of(self.placement).branches(layer, layers)
        return Layer(
            norm=functools.partial(self.norm, dtype=self.dtype),
            mlp_norm=functools.partial(self.mlp_norm or self.norm, dtype=self.dtype),
            embed_norm=self._embed_norm(),
            mixer=self._mixer(stage, index),
            mlp=self._mlp(stage, index),
            activation=self.activation,
            placement=first,
            mlp_placement=last,
            hidden=round(self.dims[stage] * ratio),
            layer_scale=self._first_scale(stage, index),
            position_conv=self.position_conv,
            drop_path=self.drop_path_rate * layer / max(layers - 1, 1),
            last_drop_path=self.drop_path_rate,
            index=index,
            count=self.depths[stage],
            dtype=self.dtype,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        placement, norm = placement_of(self.placement), self.norm(parent=None)
        sites = []
        for stage, depth in enumerate(self.depths):
            name = f"merge_{stage}" if stage else "stem"
            sites.extend(sites_of(name, self._embed(stage, parent=None)))
            if placement.embedding and not stage:
                obstacle = "its output is the residual stream"
                sites.append(FoldSite("embed_norm", norm, obstacle=obstacle))
            for i in range(depth):
                block = self._block(stage, i, parent=None)
                sites.extend(sites_of(f"blocks_{stage}_{i}", block))
            if self.stage_norm and stage < len(self.depths) - 1:
                obstacle = "its reader sees zeros around the map"
                sites.append(FoldSite(f"norm_{stage}", norm, obstacle=obstacle))
        if self.last_width is not None:
            sites.extend(sites_of("last", self._last(parent=None)))
        if self.pooled_block is not None:
            sites.extend(sites_of("pooled", self._pooled_block(parent=None)))
        if placement.final:
            norm = self._final_norm(parent=None)
            sites.append(FoldSite("norm", norm, readers=self._heads()))
        return sites
