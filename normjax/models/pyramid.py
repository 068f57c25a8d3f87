"""Pyramid transformers: Swin, PVT, CSwin and what they become with other parts."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions, repeat_over_batch
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.mixers.steps import sized_table
from normjax.models.base import MODELS, in_stages, patterns_of
from normjax.models.block import Block, feeding, mixing, sites_of
from normjax.models.layers import Factory
from normjax.models.placement import Placement, placement_of

POOLS = ("mean", "cls")


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
      norm, activation, mlp: factories (see `models.build`, which takes keys).
      mixer: factory, or one per stage; several of a stage are those of its layers in
        turn.
      stem, merge: factories of the first embedding and of the later ones.
      embed_norm: factory of the norms in stem, merges and mixers; None for `norm`.
      pos_embed: learn a table of positions per stage; fixes the size of the images.
      pool: "mean" averages the tokens; "cls" reads a class token, which joins in the
        last stage, whose mixer sees a sequence (PVT).
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      remat: recompute each block in the backward pass instead of storing it.
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
    embed_norm: Any = None
    pos_embed: bool = False
    pool: str = "mean"
    placement: str | Placement = "pre"
    drop_path_rate: float = 0.0
    remat: bool = False
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
        return (*({"grid"} for _ in self.depths[:-1]), {last})

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
            for i in range(depth):
                x = self._block(stage, i, name=f"blocks_{stage}_{i}")(x, train)
        if placement.final:
            x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        x = x[:, 0] if self.pool == "cls" else mean_over_positions(x)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _positions(self, x: jax.Array, stage: int) -> jax.Array:
        """Add the class token, if it joins here, and the table of positions."""
        if self.pool == "cls" and stage == len(self.depths) - 1:
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            token = self.param("cls_token", trunc_normal, (1, 1, x.shape[-1]))
            token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        if not self.pos_embed:
            return x
        name, what = f"pos_embed_{stage}", "table of positions"
        table = sized_table(self, name, x.shape[1:], trunc_normal, what)
        return x + repeat_over_batch(table.astype(x.dtype), x.shape[0])

    @nn.nowrap
    def _embed_norm(self) -> Factory:
        return self.norm if self.embed_norm is None else self.embed_norm

    @nn.nowrap
    def _embed(self, stage: int, **where) -> nn.Module:
        return (self.merge if stage else self.stem)(
            dim=self.dims[stage],
            norm=self._embed_norm(),
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _mixer(self, stage: int, index: int) -> Factory:
        pattern = patterns_of(self.mixer, len(self.depths))[stage]
        mixer = with_defaults(
            pattern[index % len(pattern)],
            num_heads=self.num_heads[stage],
            reduction_norm=self._embed_norm(),
            layer=sum(self.depths[:stage]) + index,
            num_layers=sum(self.depths),
        )
        return functools.partial(mixer, dtype=self.dtype)

    @nn.nowrap
    def _mlp(self, stage: int) -> Factory:
        ratio = in_stages(self.mlp_ratio, len(self.depths))[stage]
        known = {"activation": self.activation, "dtype": self.dtype}
        return functools.partial(
            self.mlp, hidden=round(self.dims[stage] * ratio), **known
        )

    @nn.nowrap
    def _block(self, stage: int, index: int, **where) -> Block:
        layer, layers = sum(self.depths[:stage]) + index, sum(self.depths)
        placement = placement_of(self.placement).layer(layer, layers)
        rate = {"drop_path": self.drop_path_rate * layer / max(layers - 1, 1)}
        norm = functools.partial(self.norm, dtype=self.dtype)
        branches = (
            mixing(norm, self._mixer(stage, index), placement, **rate),
            feeding(norm, self._mlp(stage), placement, **rate),
        )
        kind = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        return kind(branches, **where)

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
        if placement.final:
            sites.append(FoldSite("norm", norm, readers=("head",)))
        return sites
