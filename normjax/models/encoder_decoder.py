"""Encoder-decoder: a sequence from another one, for any norm, mixers and MLP."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.attention.sequence import only_tokens
from normjax.core.dense import Dense, trunc_normal
from normjax.core.folding import FoldSite
from normjax.core.registry import offer
from normjax.models.base import MODELS, in_stages
from normjax.models.block import Block, CrossBlock, sites_of
from normjax.models.layers import Factory
from normjax.models.placement import Placement, Spots, placement_of

_STREAM = "its output is the residual stream"


@MODELS.register("encoder_decoder", "seq", "causal")
class EncoderDecoder(nn.Module):
    """Encoder-decoder (Vaswani et al., 2017), its layers in LLaMA's shape.

    The encoder's blocks see the whole source; those of the decoder see the target up to
    each token and, by cross-attention, what the encoder made of the source.

    Attributes:
      vocab_size: tokens of source and target together, which share the table.
      dim, num_heads: of both transformers.  depth: layers of each.
      mlp_hidden: width inside the MLP; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
        The mixer is one for all, or three: of the encoder, of the decoder (causal) and
        the one that reads the encoder's output (tag `memory`).
      placement: where the norms sit, in encoder and decoder alike; a key of
        `models.placement.PLACEMENTS`.
      rotary_base: see `attention.sequence.PairwiseMixer`; None for no rotation. The
        cross-attention knows no positions.
      tied: the table of embeddings is also the output layer.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embeddings.
      remat: recompute each block in the backward pass instead of storing it.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    dim: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_hidden: int | None = None
    norm: Any = "rms_norm"
    mixer: Any = "softmax"
    activation: Any = "silu"
    mlp: Any = "swiglu"
    placement: str | Placement = "pre"
    rotary_base: float | None = 10000.0
    tied: bool = False
    mask_norms: bool = True
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        return {"seq", "causal"}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixers of encoder, decoder and cross-attention must accept."""
        return {"seq"}, {"seq", "causal"}, {"seq", "memory"}

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
        shape = (self.vocab_size, self.dim)
        table = self.param("embed", nn.initializers.normal(0.02), shape)
        memory = self._embedded("encoder_", table, source, source_mask, train)
        for i in range(self.depth):
            block = self._encoder_block(i, name=f"encoder_blocks_{i}")
            memory = block(memory, train, source_mask)
        memory = self._final("encoder_", memory, source_mask, train)
        x = self._embedded("", table, tokens, mask, train)
        for i in range(self.depth):
            block = self._decoder_block(i, name=f"blocks_{i}")
            x = block(x, train, mask, memory, source_mask)
        x = self._final("", x, mask, train)
        if self.tied:
            logits = x @ table.astype(x.dtype).T
        else:
            dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
            head = Dense(self.vocab_size, use_bias=False, name="head", **dense)
            logits = head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _embedded(self, prefix, table, tokens, mask, train) -> jax.Array:
        """What the stream of one of the two transformers starts with."""
        x = table.astype(self.dtype or table.dtype)[tokens]
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        if not placement_of(self.placement).embedding:
            return x
        return self._normalized(f"{prefix}embed_norm", x, mask, train)

    def _final(self, prefix, x, mask, train) -> jax.Array:
        if not placement_of(self.placement).final:
            return x
        return self._normalized(f"{prefix}norm", x, mask, train)

    def _normalized(self, name, x, mask, train) -> jax.Array:
        valid = mask if self.mask_norms else None
        norm = self.norm(name=name, dtype=self.dtype)
        return norm(only_tokens(x, valid), mask=valid, train=train)

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
        return tuple(offer(mixer, **known, **own, **more) for mixer, more in mixers)

    @nn.nowrap
    def _encoder_block(self, layer: int, **given) -> Block:
        kind = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        mixer = self._mixers(layer)[0]
        return kind(mixer=mixer, **self._block_arguments(layer), **given)

    @nn.nowrap
    def _decoder_block(self, layer: int, **given) -> CrossBlock:
        kind = nn.remat(CrossBlock, static_argnums=(2,)) if self.remat else CrossBlock
        _, mixer, cross = self._mixers(layer)
        parts = {"mixer": mixer, "cross": cross}
        return kind(**parts, **self._block_arguments(layer), **given)

    @nn.nowrap
    def _block_arguments(self, layer: int) -> dict[str, Any]:
        """Those that layers of encoder and decoder share."""
        return {
            "norm": self.norm,
            "activation": self.activation,
            "mlp": offer(self.mlp, keep_size=False),
            "mlp_hidden": self.mlp_hidden or 4 * self.dim,
            "drop_path": self.drop_path_rate * layer / max(self.depth - 1, 1),
            "spots": self._spots(layer),
            "mask_norms": self.mask_norms,
            "dtype": self.dtype,
        }

    @nn.nowrap
    def _spots(self, layer: int) -> Spots:
        return placement_of(self.placement).spots(layer, self.depth)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it.

        All cross-attentions read the last norm of the encoder: it goes into each.
        """
        placement, norm = placement_of(self.placement), self.norm(parent=None)
        stacks = ("encoder_", self._encoder_block), ("", self._decoder_block)
        sites = []
        for prefix, block in stacks:
            if placement.embedding:
                obstacle, path = _STREAM, f"{prefix}embed_norm"
                sites.append(FoldSite(path, norm, obstacle=obstacle))
            for i in range(self.depth):
                sites.extend(sites_of(f"{prefix}blocks_{i}", block(i, parent=None)))
        if placement.final:
            readers = self._memory_readers()
            sites.append(FoldSite("encoder_norm", norm, readers=readers))
        if placement.final and self.tied:
            obstacle = "the output layer is the table of embeddings"
            sites.append(FoldSite("norm", norm, obstacle=obstacle))
        elif placement.final:
            sites.append(FoldSite("norm", norm, readers=("head",)))
        return sites

    @nn.nowrap
    def _memory_readers(self) -> tuple[str, ...]:
        """Paths of the layers that make keys and values of the encoder's output."""
        crosses = [self._mixers(i)[2](parent=None) for i in range(self.depth)]
        return tuple(
            f"blocks_{i}/cross/{read}"
            for i, cross in enumerate(crosses)
            for read in cross.memory_reads
        )
