"""Encoder-decoder: a sequence from another one, for any norm, mixers and MLP."""

import flax.linen as nn
import jax

from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.models.base import MODELS, in_stages
from normjax.models.block import Block, sites_of
from normjax.models.layers import Factory
from normjax.models.placement import placement_of
from normjax.models.tokens import TokenModel


@MODELS.register("encoder_decoder", "seq", "causal")
class EncoderDecoder(TokenModel):
    """Encoder-decoder (Vaswani et al., 2017), its layers in LLaMA's shape.

    The encoder's blocks see the whole source; those of the decoder see the target up to
    each token and, by cross-attention, what the encoder made of the source. Both read
    tokens of one table. The mixer is one for all, or three: of the encoder, of the
    decoder (causal) and the one that reads the encoder's output (tag `memory`), which
    knows no positions.

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformers.  depth: layers of each.
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

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"dim": 16, "depth": 1, "num_heads": 2}
      >>> model = models.build("encoder_decoder", vocab_size=53, **size)
      >>> tokens, source = jnp.zeros((2, 5), int), jnp.zeros((2, 7), int)
      >>> logits, variables = jax.eval_shape(
      ...     model.init_with_output, jax.random.key(0), tokens, source=source
      ... )
      >>> logits.shape
      (2, 5, 53)
    """

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixers of encoder, decoder and cross-attention must accept."""
        # Queries of the cross-attention must not see each other in a norm of theirs.
        return {"seq"}, {"seq", "causal"}, {"seq", "causal", "memory"}

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        *,
        source: jax.Array,
        source_mask: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """tokens: int [B, N] -> logits of the next ones [B, N, vocab_size], float32.

        Args:
          train: whether the model trains.
          source: int [B, M], the tokens that the encoder reads.
          source_mask, mask: bool [B, M] and [B, N]; False is padding of the source and
            of `tokens`.
        """
        table = self._table()
        memory = self._embedded(table, source, source_mask, train, "encoder_")
        for i in range(self.depth):
            block = self._encoder_layer(i, name=f"encoder_blocks_{i}")
            memory = block(memory, train, {"mask": source_mask}, False)
        memory = self._finished(memory, source_mask, train, "encoder_")
        x = self._embedded(table, tokens, mask, train)
        context = {"mask": mask, "memory": memory, "memory_mask": source_mask}
        for i in range(self.depth):
            x = self._decoder_layer(i, name=f"blocks_{i}")(x, train, context, False)
        x = self._finished(x, mask, train)
        return self._logits(x, table)

    @nn.nowrap
    def _mixers(self, layer: int) -> tuple[Factory, ...]:
        """Those of encoder, decoder and cross-attention."""
        known = {"num_heads": self.num_heads, "layer": layer, "num_layers": self.depth}
        own = {"qkv_bias": False, "proj_bias": False}
        order = (
            {"causal": False, "rotary_base": self.rotary_base},
            {"causal": True, "rotary_base": self.rotary_base},
            {"causal": False, "rotary_base": None},
        )
        mixers = zip(in_stages(self.mixer, 3), order, strict=True)
        return tuple(
            with_defaults(mixer, **known, **own, **more) for mixer, more in mixers
        )

    @nn.nowrap
    def _encoder_layer(self, layer: int, **where) -> Block:
        return self._block(layer, self._mixers(layer)[0], **where)

    @nn.nowrap
    def _decoder_layer(self, layer: int, **where) -> Block:
        _, mixer, cross = self._mixers(layer)
        return self._block(layer, mixer, cross, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it.

        All cross-attentions read the last norm of the encoder: it goes into each.
        """
        sites = []
        stacks = ("encoder_", self._encoder_layer), ("", self._decoder_layer)
        for prefix, block in stacks:
            sites += self._first_sites(prefix)
            for i in range(self.depth):
                sites.extend(sites_of(f"{prefix}blocks_{i}", block(i, parent=None)))
        if placement_of(self.placement).final:
            norm, readers = self.norm(parent=None), self._memory_readers()
            sites.append(FoldSite("encoder_norm", norm, readers=readers))
        return sites + self._last_sites()

    @nn.nowrap
    def _memory_readers(self) -> tuple[str, ...]:
        """Paths of the layers that make keys and values of the encoder's output."""
        crosses = [self._mixers(i)[2](parent=None) for i in range(self.depth)]
        return tuple(
            f"blocks_{i}/cross/{read}"
            for i, cross in enumerate(crosses)
            for read in cross.memory_reads
        )
