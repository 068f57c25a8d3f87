"""Vision transformer in DeiT geometry, for any norm, mixer and activation."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions, repeat_over_batch
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite, Stream
from normjax.core.registry import with_defaults
from normjax.core.scanned import run_layers, split_layers
from normjax.models.base import MODELS, patterns_of, widened
from normjax.models.block import (
    Block,
    check_alike,
    feeding,
    mixing,
    sites_of,
    stream_of,
)
from normjax.models.layers import Factory
from normjax.models.placement import Placement, placement_of, stream_obstacle
from normjax.models.remat import recomputed
from normjax.models.sinusoids import POSITIONS
from normjax.models.tokenizers import SequencePooling

_SHARED = "layers with other norms share the weights next to it"
POOLS = {
    "cls": "seq",
    "distilled": "seq",
    "mean": "grid",
    "sequence": "grid",
    "last": "seq",
}
TOKENS = {
    "cls": ("cls_token",),
    "distilled": ("cls_token", "dist_token"),
    "last": ("cls_token",),
}
"""Learned tokens beside those of the image."""


@MODELS.register("vit", "seq", "grid")
class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021; DeiT, Touvron et al., 2021).

    Attributes:
      num_classes: width of the logits.
      dim, depth, num_heads, mlp_ratio: of the transformer.
      norm, mixer, activation, mlp, stem: factories (see `models.build`, which takes
        keys). Several mixers are those of the layers in turn.
      embed_norm: factory of the norms in the stem; None for `norm`.
      pool: "cls" reads a class token, so that tokens form a sequence; "distilled" a
        second token beside it, whose own head gives logits that are averaged with
        those of the first (DeiT); "last" a class token behind the image (iLLaMA; its
        place in the table stays the first); "mean" averages the tokens, which stay a
        grid [B, H, W, C]; "sequence" weighs them (`models.SequencePooling`).
      positions: the table that is added to the tokens: "learned", "sine" or
        "stored_sine"; see `models.sinusoids.POSITIONS`.
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      share_layers: all layers have the weights of one mixer and one MLP, and each its
        own norms (WideNet; Xue et al., 2022).
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embedding.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
      scan_layers: compile one block and run it `depth` times, on variables `blocks`
        with a first axis of layers; of layers that are all alike and share nothing.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> stem = {"name": "patch", "patch_size": 4}
      >>> size = {"dim": 8, "depth": 1, "num_heads": 2, "stem": stem}
      >>> model = models.build("vit", norm="repbn", mixer="sla", num_classes=10, **size)
      >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(1), images)
      >>> logits.shape, sorted(variables["params"])
      ((2, 10), ['blocks_0', 'head', 'norm', 'pos_embed', 'stem'])
    """

    num_classes: int
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    norm: Any = "layer_norm"
    mixer: Any = "softmax"
    activation: Any = "gelu"
    mlp: Any = "mlp"
    stem: Any = "patch"
    embed_norm: Any = None
    pool: str = "mean"
    positions: str = "learned"
    placement: str | Placement = "pre"
    share_layers: bool = False
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None
    scan_layers: bool = False

    @property
    def scanned(self) -> tuple[str, ...]:
        """Names of what has a first axis of layers in all its variables."""
        return ("blocks",) if self.scan_layers else ()

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms and the mixer get to see."""
        if self.pool not in POOLS:
            raise UserError(f"pool {self.pool!r} is none of {', '.join(POOLS)}")
        if self.positions not in POSITIONS:
            raise UserError(one_of("positions", self.positions, POSITIONS))
        return {POOLS[self.pool]}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """The same for the mixer of each stage, of which there is one."""
        return (self.layouts(),)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        placement = placement_of(self.placement)
        x = self._stem(name="stem")(images, train=train)
        x = self._embed(x, train)
        if placement.embedding:
            x = self.norm(name="embed_norm", dtype=self.dtype)(x, train=train)
        x = self._stack(x, train)
        if placement.final:
            x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        heads = [Dense(self.num_classes, name=n, **init) for n in self._heads()]
        each = [head(x) for head, x in zip(heads, self._read(x), strict=True)]
        logits = each[0] if len(each) == 1 else sum(each) / len(each)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _stack(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.scan_layers:
            shared = self._shared() if self.share_layers else {}
            for i in range(self.depth):
                x = self._block(i, name=f"blocks_{i}", **shared)(x, train)
            return x
        if self.share_layers:
            raise UserError("scan_layers scans weights, share_layers has those of one")
        check_alike(self._block(i, parent=None) for i in range(self.depth))
        return run_layers(self._block(0, name="blocks"), self.depth, x, train)

    @nn.nowrap
    def unrolled(self, variables: Mapping[str, Any]) -> tuple["ViT", dict[str, Any]]:
        """The same model with a module for every layer, and its variables."""
        if not self.scan_layers:
            return self, dict(variables)
        unrolled = {k: split_layers(v, self.scanned) for k, v in variables.items()}
        return self.clone(scan_layers=False), unrolled

    def _read(self, x: jax.Array) -> list[jax.Array]:
        """What the heads read, [B, C] each."""
        if self.pool == "sequence":
            return [SequencePooling(dtype=self.dtype, name="pool")(x)]
        if self.pool == "last":
            return [x[:, -1]]
        tokens = TOKENS.get(self.pool, ())
        return [x[:, i] for i in range(len(tokens))] or [mean_over_positions(x)]

    @nn.nowrap
    def _heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.pool == "distilled" else ("head",)

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        return self.stem(
            dim=self.dim,
            norm=self.norm if self.embed_norm is None else self.embed_norm,
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _mixer(self, layer: int = 0) -> Factory:
        (pattern,) = patterns_of(self.mixer, 1)
        known = {"layer": layer, "num_layers": self.depth}
        known |= {"num_heads": self.num_heads}
        known |= dict.fromkeys(("norm", "reduction_norm"), self.norm)
        return with_defaults(pattern[layer % len(pattern)], **known)

    def _shared(self) -> dict[str, nn.Module]:
        """The parts that all blocks share, as in the first one."""
        return {
            "mixer": self._mixer(0)(name="mixer", dtype=self.dtype),
            "mlp": self._mlp()(name="mlp"),
        }

    @nn.nowrap
    def _mlp(self) -> Factory:
        hidden = round(self.dim * self.mlp_ratio)
        known = {"activation": self.activation, "dtype": self.dtype}
        return functools.partial(self.mlp, hidden=hidden, **known)

    @nn.nowrap
    def _block(self, layer: int, mixer: Any = None, mlp: Any = None, **where) -> Block:
        placement, last = placement_of(self.placement).branches(layer, self.depth)
        rate = {"drop_path": self.drop_path_rate * layer / max(self.depth - 1, 1)}
        norm = functools.partial(self.norm, dtype=self.dtype)
        mixer = mixer or functools.partial(self._mixer(layer), dtype=self.dtype)
        branches = (
            mixing(norm, mixer, placement, **rate),
            feeding(norm, mlp or self._mlp(), last, **rate),
        )
        return recomputed(Block, self.remat)(branches, **where)

    def _embed(self, x: jax.Array, train: bool) -> jax.Array:
        """Add the tokens that are learned, if any, and the table of positions."""
        if names := TOKENS.get(self.pool, ()):
            x = x.reshape(x.shape[0], -1, self.dim)
            tokens = [self.param(n, trunc_normal, (1, 1, self.dim)) for n in names]
            shape = (x.shape[0], 1, self.dim)
            tokens = [jnp.broadcast_to(t, shape).astype(x.dtype) for t in tokens]
            x = jnp.concatenate([*tokens, x], axis=1)
        table = POSITIONS[self.positions](self, x.shape[1:])
        x = x + repeat_over_batch(table.astype(x.dtype), x.shape[0])
        if self.pool == "last":
            x = jnp.roll(x, -1, 1)
        return nn.Dropout(self.dropout_rate)(x, deterministic=not train)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        placement, norm = placement_of(self.placement), self.norm(parent=None)
        sites = list(sites_of("stem", self._stem(parent=None)))
        if placement.embedding:
            obstacle = "its output is the residual stream"
            sites.append(FoldSite("embed_norm", norm, obstacle=obstacle))
        for i in range(self.depth):
            sites.extend(self._block_sites(i))
        if placement.final:
            sites.append(FoldSite("norm", norm, readers=self._readers()))
        return sites

    @nn.nowrap
    def _readers(self) -> tuple[str, ...]:
        """The linear layers that read the last norm."""
        # Weights of the pooled tokens sum to 1: what is affine before, is behind.
        pool = ("pool/scores",) if self.pool == "sequence" else ()
        return (*pool, *self._heads())

    @nn.nowrap
    def _block_sites(self, layer: int) -> Iterable[FoldSite]:
        block = self._block(layer, parent=None)
        if not self.share_layers:
            yield from sites_of(f"blocks_{layer}", block)
            return
        for site in block.fold_sites():
            if "/" not in site.path:
                path, obstacle = f"blocks_{layer}/{site.path}", site.obstacle or _SHARED
                yield FoldSite(path, site.norm, obstacle=obstacle)
            elif layer == 0:
                yield site

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream and which norms read it."""
        obstacle = stream_obstacle(self.placement, self.depth)
        if not obstacle and self.share_layers:
            obstacle = "layers share their weights"
        elif not obstacle and self.dropout_rate:
            obstacle = "dropout acts on the stream"
        elif not obstacle and self.positions != "learned":
            obstacle = f"the table of positions {self.positions!r} is no parameter"
        tables = (*TOKENS.get(self.pool, ()), "pos_embed")
        stem = {"stem": self._stem(parent=None)}
        blocks = {f"blocks_{i}": self._block(i, parent=None) for i in range(self.depth)}
        return stream_of(tables, stem, blocks, obstacle)

    @nn.nowrap
    def narrowed(self) -> "ViT":
        """The same with one channel less in the stream, as wide as before inside."""
        stem = self._stem(parent=None)
        return self.clone(
            dim=self.dim - 1,
            mlp_ratio=round(self.dim * self.mlp_ratio) / (self.dim - 1),
            stem=functools.partial(self.stem, **stem.inner_widths(self.dim)),
            mixer=widened(self.mixer, self._mixer, self.dim),
        )
