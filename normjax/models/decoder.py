"""Causal language model in LLaMA's shape, for any norm, causal mixer and MLP."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream
from normjax.core.ranges import POSITIVE, Range
from normjax.core.registry import with_defaults
from normjax.core.scanned import run_layers, split_layers
from normjax.mixers.cache import next_positions
from normjax.models.base import MODELS, patterns_of, widened
from normjax.models.block import Block, check_alike, sites_of, stream_of
from normjax.models.layers import Factory
from normjax.models.placement import stream_obstacle
from normjax.models.tokens import TABLE_READS, TokenModel


@MODELS.register("decoder", "seq", "causal", "decode")
class Decoder(TokenModel):
    """Decoder (LLaMA; Touvron et al., 2023): which token comes next.

    The mixer is causal; one that attends by pairs turns queries and keys by their
    position.

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformer.  depth: layers.
      mlp_hidden: width inside the MLP, or those of the layers in turn; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
      placement: where the norms sit; a key of `models.PLACEMENTS`, or a `Placement`.
      rotary_base: queries and keys turn by their position, with frequencies down to
        1 / rotary_base; None: they do not.
      tied: the table of embeddings is also the output layer.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embeddings.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
      max_length: positions that there is a learned embedding of, which is added to that
        of the token (GPT); None: there is none.
      scan_layers: compile one block and run it `depth` times, on variables `blocks`
        with a first axis of layers; for deep models, whose layers are all alike.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build("decoder", vocab_size=257, dim=16, depth=2, num_heads=2)
      >>> tokens = jnp.array([[256, 104, 105]])  # END, "h", "i"
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> jax.eval_shape(model.apply, variables, tokens).shape
      (1, 3, 257)
    """

    max_length: int | None = None
    scan_layers: bool = False

    ranges: ClassVar[Mapping[str, Range]] = {"max_length": POSITIVE}

    @property
    def scanned(self) -> tuple[str, ...]:
        """Names of what has a first axis of layers in all its variables."""
        return ("blocks",) if self.scan_layers else ()

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer of the only stage must accept."""
        return ({"seq", "causal"},)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        decode: bool = False,
    ) -> jax.Array:
        """tokens: int [B, L] -> logits of the next ones [B, L, vocab_size], float32.

        Args:
          train: whether the model trains.
          mask: bool [B, L]; False is padding.
          positions: int [B, L], the position of each token in its document; 0 starts
            a document. None: one document a row.
          decode: the tokens continue the rows of the calls before, whose traces the
            collection `cache` holds (see `mixers.cache`); without `positions`.

        Raises:
          UserError: `scan_layers` of layers that differ, or rows that are longer than
            `max_length`.
        """
        table = self._table()
        places = self._places(tokens, mask, positions, decode)
        x = self._embedded(table, tokens, mask, train, places=places)
        context = {"mask": mask, "positions": positions}
        x = self._stack(x, train, context, decode)
        x = self._finished(x, mask, train)
        return self._logits(x, table)

    def _places(self, tokens, mask, positions, decode) -> jax.Array | None:
        """[B or 1, L, dim], the learned embeddings of the positions of tokens."""
        if self.max_length is None:
            return None
        length = tokens.shape[1]
        if length > self.max_length:
            hint = f"max_length={self.max_length}"
            raise UserError(f"rows of {length} tokens, but positions up to {hint}")
        shape = (self.max_length, self.dim)
        places = self.param("pos_embed", nn.initializers.normal(0.02), shape)
        if decode:
            positions = next_positions(self, tokens.shape, mask, positions)
        elif positions is None and mask is not None:
            positions = jnp.cumsum(mask, 1) - 1
        if positions is None:
            return places[None, :length]
        return places[jnp.maximum(positions, 0)]

    def _stack(self, x: jax.Array, *arguments) -> jax.Array:
        if not self.scan_layers:
            for i in range(self.depth):
                x = self._layer(i, name=f"blocks_{i}")(x, *arguments)
            return x
        check_alike(self._layer(i, parent=None) for i in range(self.depth))
        return run_layers(self._layer(0, name="blocks"), self.depth, x, *arguments)

    @nn.nowrap
    def unrolled(
        self, variables: Mapping[str, Any]
    ) -> tuple["Decoder", dict[str, Any]]:
        """The same model with a module for every layer, and its variables."""
        if not self.scan_layers:
            return self, dict(variables)
        unrolled = {k: split_layers(v, self.scanned) for k, v in variables.items()}
        return self.clone(scan_layers=False), unrolled

    @nn.nowrap
    def _mixer(self, layer: int = 0) -> Factory:
        known = {"layer": layer, "num_layers": self.depth, "causal": True}
        own = {"rotary_base": self.rotary_base, "qkv_bias": False, "proj_bias": False}
        (pattern,) = patterns_of(self.mixer, 1)
        mixer = pattern[layer % len(pattern)]
        return with_defaults(mixer, num_heads=self.num_heads, **known, **own)

    @nn.nowrap
    def _layer(self, layer: int, **where) -> Block:
        return self._block(layer, self._mixer(layer), **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        sites = self._first_sites()
        for i in range(self.depth):
            sites.extend(sites_of(f"blocks_{i}", self._layer(i, parent=None)))
        return sites + self._last_sites()

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream and which norms read it."""
        obstacle = stream_obstacle(self.placement, self.depth)
        if not obstacle and self.tied:
            obstacle = TABLE_READS
        elif not obstacle and self.dropout_rate:
            obstacle = "dropout acts on the stream"
        blocks = {f"blocks_{i}": self._layer(i, parent=None) for i in range(self.depth)}
        tables = ("embed",) if self.max_length is None else ("embed", "pos_embed")
        return stream_of(tables, {}, blocks, obstacle)

    @nn.nowrap
    def narrowed(self) -> "Decoder":
        """The same with one channel less in the stream, as wide as before inside."""
        return self.clone(
            dim=self.dim - 1,
            mlp_hidden=self.mlp_hidden or 4 * self.dim,
            mixer=widened(self.mixer, self._mixer, self.dim),
        )
