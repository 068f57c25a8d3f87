"""Encoder of tokens with the head of a masked language model (BERT's shape)."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.ranges import POSITIVE, Range
from normjax.core.registry import with_defaults
from normjax.models.base import MODELS, patterns_of
from normjax.models.block import Block, sites_of
from normjax.models.blocks import Layer
from normjax.models.layers import Factory
from normjax.models.placement import Placement, placement_of
from normjax.models.remat import recomputed
from normjax.models.tokens import TABLE_READS, TokenModel

_small = nn.initializers.normal(0.02)


@MODELS.register("encoder", "seq")
class Encoder(TokenModel):
    """Encoder (BERT; Devlin et al., 2019): which tokens stood where they are masked.

    Tokens, their positions and their types are embedded, summed and normalised; every
    position sees all others. The head is norm(act(W x)) times the table of tokens, and
    a bias.

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformer.  depth: layers.
      mlp_hidden: width inside the MLP, or those of the layers in turn; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
      branches: those of a layer, or of the layers in turn; a key of `models.BLOCKS`.
      placement: where the norms sit; a key of `models.PLACEMENTS`, or a `Placement`.
      rotary_base: see `mixers.SoftmaxAttention`; None for no rotation.
      tied: unused: the table of embeddings is always the output layer.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embeddings.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
      max_length: positions that there is an embedding of.
      types: kinds of segments that there is an embedding of.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build("encoder", vocab_size=30, dim=16, depth=2, num_heads=2)
      >>> tokens = jnp.array([[3, 1, 4, 1]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> jax.eval_shape(model.apply, variables, tokens).shape
      (1, 4, 30)
    """

    norm: Any = "layer_norm"
    activation: Any = "gelu"
    mlp: Any = "mlp"
    branches: Any = "transformer"
    placement: str | Placement = "post"
    rotary_base: float | None = None
    max_length: int = 512
    types: int = 2

    ranges: ClassVar[Mapping[str, Range]] = {"max_length": POSITIVE, "types": POSITIVE}

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        return {"seq"}

    @nn.nowrap
    def patterned(self) -> set[str]:
        """The components that differ from layer to layer."""
        return {"mixer", "branches"}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer of the only stage must accept."""
        return ({"seq"},)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        *,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
    ) -> jax.Array:
        """tokens: int [B, L] -> logits of themselves [B, L, vocab_size], float32.

        Args:
          train: whether the model trains.
          mask: bool [B, L]; False is padding.
          types: int [B, L], the segment of each token; None: all of the first.

        Raises:
          UserError: more tokens than `max_length`.
        """
        table = self._table()
        x = self._contextual(table, tokens, train, mask, types)
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = Dense(self.dim, name="neck", **dense)(x)
        x = self._normalized("head_norm", self.activation(name="act")(x), mask, train)
        logits = x @ table.astype(x.dtype).T
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocab_size,))
        logits = logits + bias.astype(x.dtype).reshape(1, 1, -1)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _contextual(self, table, tokens, train, mask, types=None) -> jax.Array:
        """The tokens as the last layer leaves them: [B, L, dim]."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise UserError(
                f"{length} tokens are more than max_length {self.max_length}"
            )
        positions = self.param("pos_embed", _small, (self.max_length, self.dim))
        segments = self.param("type_embed", _small, (self.types, self.dim))
        x = table.astype(self.dtype or table.dtype)[tokens]
        segment = segments[:1][None] if types is None else segments[types]
        x = x + positions[None, :length].astype(x.dtype) + segment.astype(x.dtype)
        x = self._normalized("embed_norm", x, mask, train)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        for i in range(self.depth):
            x = self._layer(i, name=f"blocks_{i}")(x, train, {"mask": mask})
        return self._finished(x, mask, train)

    @nn.nowrap
    def _layer(self, index: int, **where) -> Block:
        (pattern,) = patterns_of(self.branches, 1)
        branches = pattern[index % len(pattern)]().branches(self._given(index))
        return recomputed(Block, self.remat)(branches, self.mask_norms, **where)

    @nn.nowrap
    def _mixer(self, layer: int) -> Factory:
        known = {"layer": layer, "num_layers": self.depth, "norm": self.norm}
        known |= {"rotary_base": self.rotary_base, "dtype": self.dtype}
        known |= {"max_length": self.max_length, "num_heads": self.num_heads}
        (pattern,) = patterns_of(self.mixer, 1)
        return with_defaults(pattern[layer % len(pattern)], **known)

    @nn.nowrap
    def _given(self, index: int) -> Layer:
        hidden = self._hidden(index)
        mlp = with_defaults(self.mlp, keep_size=False, dtype=self.dtype)
        known = {"hidden": hidden, "activation": self.activation}
        norm = functools.partial(self.norm, dtype=self.dtype)
        first, last = placement_of(self.placement).branches(index, self.depth)
        return Layer(
            norm=norm,
            mlp_norm=norm,
            embed_norm=norm,
            mixer=self._mixer(index),
            mlp=functools.partial(mlp, **known),
            activation=self.activation,
            placement=first,
            mlp_placement=last,
            hidden=hidden,
            drop_path=self.drop_path_rate * index / max(self.depth - 1, 1),
            last_drop_path=self.drop_path_rate,
            index=index,
            count=self.depth,
            dtype=self.dtype,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        norm, sites = self.norm(parent=None), self._layer_sites(("neck",))
        return [*sites, FoldSite("head_norm", norm, obstacle=TABLE_READS)]

    @nn.nowrap
    def _layer_sites(self, readers: tuple[str, ...]) -> list[FoldSite]:
        """The norms of the layers and around them; `readers` read the last one."""
        norm, why = self.norm(parent=None), "its output is the residual stream"
        sites = [FoldSite("embed_norm", norm, obstacle=why)]
        for i in range(self.depth):
            sites.extend(sites_of(f"blocks_{i}", self._layer(i, parent=None)))
        if placement_of(self.placement).final:
            sites.append(FoldSite("norm", norm, readers=readers))
        return sites
