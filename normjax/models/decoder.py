"""Causal language model in LLaMA's shape, for any norm, causal mixer and MLP."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream
from normjax.core.registry import offer
from normjax.core.scanned import split_layers
from normjax.models.base import MODELS
from normjax.models.block import Block, sites_of, stream_of
from normjax.models.layers import Factory
from normjax.models.placement import stream_obstacle
from normjax.models.tokens import TABLE_READS, TokenModel


@MODELS.register("decoder", "seq", "causal", "decode")
class Decoder(TokenModel):
    """Decoder (LLaMA; Touvron et al., 2023): which token comes next.

    The mixer is causal; one that attends by pairs turns queries and keys by their
    position.

    Attributes: those of TokenModel and
      scan_layers: compile one block and run it `depth` times, on variables `blocks`
        with a first axis of layers; for deep models, whose layers are all alike.
    """

    scan_layers: bool = False

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
          UserError: `scan_layers` of layers that differ.
        """
        table = self._table()
        x = self._embedded(table, tokens, mask, train)
        x = self._stack(x, train, mask, positions, decode)
        x = self._finished(x, mask, train)
        return self._logits(x, table)

    def _stack(self, x: jax.Array, *arguments) -> jax.Array:
        if not self.scan_layers:
            for i in range(self.depth):
                x = self._block(i, name=f"blocks_{i}")(x, *arguments)
            return x
        first = _comparable(self._block_arguments(0))
        for i in range(1, self.depth):
            for name, value in _comparable(self._block_arguments(i)).items():
                if value != first[name]:
                    hint = "scan_layers needs layers that are all alike"
                    raise UserError(f"{name} of layers 0 and {i} differ: {hint}")

        def body(block, x, _):
            return block(x, *arguments), None

        scan = nn.scan(
            body,
            variable_axes={True: 0},
            split_rngs={True: True},
            length=self.depth,
        )
        return scan(self._block(0, name="blocks"), x, None)[0]

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
        return offer(self.mixer, num_heads=self.num_heads, **known, **own)

    @nn.nowrap
    def _block(self, layer: int, **given) -> Block:
        kind = nn.remat(Block, static_argnums=(2, 5)) if self.remat else Block
        return kind(**{**self._block_arguments(layer), **given})

    @nn.nowrap
    def _block_arguments(self, layer: int) -> dict[str, Any]:
        return {**super()._block_arguments(layer), "mixer": self._mixer(layer)}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        sites = self._first_sites()
        for i in range(self.depth):
            sites.extend(sites_of(f"blocks_{i}", self._block(i, parent=None)))
        return sites + self._last_sites()

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream and which norms read it."""
        obstacle = stream_obstacle(self.placement, self.depth)
        if not obstacle and self.tied:
            obstacle = TABLE_READS
        elif not obstacle and self.dropout_rate:
            obstacle = "dropout acts on the stream"
        blocks = {f"blocks_{i}": self._block(i, parent=None) for i in range(self.depth)}
        return stream_of(("embed",), {}, blocks, obstacle)

    @nn.nowrap
    def narrowed(self) -> "Decoder":
        """The same with one channel less in the stream, as wide as before inside."""
        mixer = self._mixer()(parent=None)
        if not hasattr(mixer, "inner_widths"):
            name = type(mixer).__name__
            raise UserError(f"{name} cannot be wider inside than the stream")
        return self.clone(
            dim=self.dim - 1,
            mlp_hidden=self.mlp_hidden or 4 * self.dim,
            mixer=functools.partial(self.mixer, **mixer.inner_widths(self.dim)),
        )


def _comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """Partial functions as what they are made of."""

    def made_of(value):
        if isinstance(value, functools.partial):
            return value.func, value.args, value.keywords
        return value

    return {name: made_of(value) for name, value in arguments.items()}
