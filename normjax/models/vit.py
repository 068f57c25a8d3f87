"""Vision transformer in DeiT geometry, for any norm, mixer and activation."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream
from normjax.models.base import MODELS
from normjax.models.layers import MLP, Factory, StochasticDepth, trunc_normal
from normjax.models.placement import Placement, Spots, placement_of, residual

POOLS = {"cls": "seq", "mean": "grid"}


class Block(nn.Module):
    """One transformer layer: a token mixer and an MLP, each a residual branch.

    Attributes:
      norm, mixer, activation: factories; the mixer's takes `num_heads` already.
      mlp_hidden: width inside the MLP.  drop_path: rate of stochastic depth.
      spots: where the norms of both branches sit.
    """

    norm: Factory
    mixer: Factory
    activation: Factory
    mlp_hidden: int
    drop_path: float
    spots: Spots
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, L, C] or [B, H, W, C] -> same."""
        mixer = self.mixer(name="mixer", dtype=self.dtype)
        mlp = MLP(self.mlp_hidden, self.activation, dtype=self.dtype, name="mlp")
        branches = (("norm1", lambda h: mixer(h, train=train)), ("norm2", mlp))
        for name, layer in branches:

            def norm(suffix, h, name=name):
                return self.norm(name=name + suffix, dtype=self.dtype)(h, train=train)

            def branch(h, layer=layer):
                return StochasticDepth(self.drop_path)(layer(h), train=train)

            x = residual(x, branch, norm, self.spots)
        return x


@MODELS.register("vit", "seq", "grid")
class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021; DeiT, Touvron et al., 2021).

    Attributes:
      num_classes: width of the logits.
      dim, depth, num_heads, mlp_ratio: of the transformer.
      norm, mixer, activation, stem: factories (see `models.build`, which takes keys).
      pool: "cls" reads a class token, so that tokens form a sequence; "mean" averages
        the tokens, which stay a grid [B, H, W, C].
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embedding.
      remat: recompute each block in the backward pass instead of storing it.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    norm: Any = "layer_norm"
    mixer: Any = "softmax"
    activation: Any = "gelu"
    stem: Any = "patch"
    pool: str = "mean"
    placement: str | Placement = "pre"
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms and the mixer get to see."""
        if self.pool not in POOLS:
            raise UserError(f"pool {self.pool!r} is none of {', '.join(POOLS)}")
        return {POOLS[self.pool]}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        placement = placement_of(self.placement)
        x = self._stem(name="stem")(images, train=train)
        x = self._embed(x, train)
        if placement.embedding:
            x = self.norm(name="embed_norm", dtype=self.dtype)(x, train=train)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            x = block(
                norm=self.norm,
                mixer=self._mixer(),
                activation=self.activation,
                mlp_hidden=round(self.dim * self.mlp_ratio),
                drop_path=self.drop_path_rate * i / max(self.depth - 1, 1),
                spots=placement.spots(i, self.depth),
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x, train)
        if placement.final:
            x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        tokens = tuple(range(1, x.ndim - 1))
        x = x[:, 0] if self.pool == "cls" else jnp.mean(x, tokens)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = nn.Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        return self.stem(
            dim=self.dim,
            norm=self.norm,
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _mixer(self) -> Factory:
        def factory(**kwargs):
            return self.mixer(num_heads=self.num_heads, **kwargs)

        return factory

    def _embed(self, x: jax.Array, train: bool) -> jax.Array:
        """Add the class token, if any, and the table of positions."""
        if self.pool == "cls":
            x = x.reshape(x.shape[0], -1, self.dim)
            token = self.param("cls_token", trunc_normal, (1, 1, self.dim))
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.dim))
            x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        table = self.param("pos_embed", trunc_normal, (1, *x.shape[1:]))
        x = x + table.astype(x.dtype)
        return nn.Dropout(self.dropout_rate)(x, deterministic=not train)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        placement, norm = placement_of(self.placement), self.norm(parent=None)
        sites = [
            FoldSite(f"stem/{name}", norm, writer=f"stem/{writer}")
            for name, writer in self._stem(parent=None).norm_writers().items()
        ]
        stream = "its output is the residual stream"
        if placement.embedding:
            sites.append(FoldSite("embed_norm", norm, obstacle=stream))
        mixer_reads = self._mixer()(parent=None).reads
        for i in range(self.depth):
            spots, block = placement.spots(i, self.depth), f"blocks_{i}"
            for name, layer, reads, last in (
                ("norm1", "mixer", mixer_reads, "proj"),
                ("norm2", "mlp", MLP.reads, "fc2"),
            ):
                path = f"{block}/{name}"
                readers = tuple(f"{block}/{layer}/{r}" for r in reads)
                if spots.input:
                    scale = spots.scale
                    sites.append(FoldSite(path, norm, readers=readers, scale=scale))
                if spots.output:
                    writer = f"{block}/{layer}/{last}"
                    sites.append(FoldSite(f"{path}_out", norm, writer=writer))
                if spots.stream:
                    sites.append(FoldSite(path, norm, obstacle=stream))
        if placement.final:
            sites.append(FoldSite("norm", norm, readers=("head",)))
        return sites

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream and which norms read it."""
        placement, layers = placement_of(self.placement), range(self.depth)
        obstacle = ""
        spots = [placement.spots(i, self.depth) for i in layers]
        if placement.embedding or any(s.output or s.stream for s in spots):
            obstacle = f"placement {self.placement!r} adds norms into the stream"
        elif not placement.final or not all(s.input for s in spots):
            obstacle = f"placement {self.placement!r} lets layers read it without norm"
        elif self.dropout_rate:
            obstacle = "dropout acts on the stream"
        tables = ("cls_token", "pos_embed") if self.pool == "cls" else ("pos_embed",)
        stem = f"stem/{self._stem(parent=None).writer()}"
        branches = ("norm1", "norm2"), ("mixer/proj", "mlp/fc2")
        norms, writers = (
            tuple(f"blocks_{i}/{name}" for i in layers for name in names)
            for names in branches
        )
        return Stream((stem, *tables, *writers), (*norms, "norm"), obstacle)

    @nn.nowrap
    def narrowed(self) -> "ViT":
        """The same with one channel less in the stream, as wide as before inside."""
        stem, mixer = self._stem(parent=None), self._mixer()(parent=None)
        if not hasattr(mixer, "inner_widths"):
            name = type(mixer).__name__
            raise UserError(f"{name} cannot be wider inside than the stream")
        return self.clone(
            dim=self.dim - 1,
            mlp_ratio=round(self.dim * self.mlp_ratio) / (self.dim - 1),
            stem=functools.partial(self.stem, **stem.inner_widths(self.dim)),
            mixer=functools.partial(self.mixer, **mixer.inner_widths(self.dim)),
        )
