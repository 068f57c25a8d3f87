"""Causal language model in LLaMA's shape, for any norm, causal mixer and MLP."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.attention.sequence import only_tokens
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream
from normjax.core.registry import offer
from normjax.models.base import MODELS
from normjax.models.block import Block, sites_of
from normjax.models.layers import Factory
from normjax.models.placement import Placement, placement_of, stream_obstacle


@MODELS.register("decoder", "seq", "causal", "decode")
class Decoder(nn.Module):
    """Decoder (LLaMA; Touvron et al., 2023): which token comes next.

    Attributes:
      vocab_size: tokens.
      dim, depth, num_heads: of the transformer.
      mlp_hidden: width inside the MLP; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
        The mixer is causal; one that attends by pairs turns queries and keys by their
        position (`rotary_base`).
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      rotary_base: see `attention.sequence.PairwiseMixer`; None for no rotation.
      tied: the table of embeddings is also the output layer.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embedding.
      remat: recompute each block in the backward pass instead of storing it.
      scan_layers: compile one block and run it `depth` times, on variables `blocks`
        with a first axis of layers; for deep models, whose layers are all alike.
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
    scan_layers: bool = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        return {"seq", "causal"}

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
            collection `cache` holds (see `attention.cache`); without `positions`.

        Raises:
          UserError: `scan_layers` of layers that differ.
        """
        placement = placement_of(self.placement)
        valid = mask if self.mask_norms else None
        shape = (self.vocab_size, self.dim)
        table = self.param("embed", nn.initializers.normal(0.02), shape)
        x = table.astype(self.dtype or table.dtype)[tokens]
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        norm = functools.partial(self.norm, dtype=self.dtype)
        if placement.embedding:
            x = norm(name="embed_norm")(only_tokens(x, valid), mask=valid, train=train)
        x = self._stack(x, train, mask, positions, decode)
        if placement.final:
            x = norm(name="norm")(only_tokens(x, valid), mask=valid, train=train)
        if self.tied:
            logits = x @ table.astype(x.dtype).T
        else:
            dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
            head = Dense(self.vocab_size, use_bias=False, name="head", **dense)
            logits = head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

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
        unrolled = {}
        for collection, tree in variables.items():
            unrolled[collection] = {k: v for k, v in tree.items() if k != "blocks"}
            for i in range(self.depth if "blocks" in tree else 0):
                layer = jax.tree.map(lambda x, i=i: x[i], tree["blocks"])
                unrolled[collection][f"blocks_{i}"] = layer
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
        rate = self.drop_path_rate * layer / max(self.depth - 1, 1)
        return {
            "norm": self.norm,
            "mixer": self._mixer(layer),
            "activation": self.activation,
            "mlp": offer(self.mlp, keep_size=False),
            "mlp_hidden": self.mlp_hidden or 4 * self.dim,
            "drop_path": rate,
            "spots": placement_of(self.placement).spots(layer, self.depth),
            "mask_norms": self.mask_norms,
            "dtype": self.dtype,
        }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        placement, norm = placement_of(self.placement), self.norm(parent=None)
        sites = []
        if placement.embedding:
            obstacle = "its output is the residual stream"
            sites.append(FoldSite("embed_norm", norm, obstacle=obstacle))
        for i in range(self.depth):
            sites.extend(sites_of(f"blocks_{i}", self._block(i, parent=None)))
        if placement.final and self.tied:
            obstacle = "the output layer is the table of embeddings"
            sites.append(FoldSite("norm", norm, obstacle=obstacle))
        elif placement.final:
            sites.append(FoldSite("norm", norm, readers=("head",)))
        return sites

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream and which norms read it."""
        layers = range(self.depth)
        obstacle = stream_obstacle(self.placement, self.depth)
        if not obstacle and self.tied:
            obstacle = "the output layer is the table of embeddings"
        elif not obstacle and self.dropout_rate:
            obstacle = "dropout acts on the stream"
        branches = ("norm1", "norm2"), ("mixer/proj", "mlp/fc2")
        norms, writers = (
            tuple(f"blocks_{i}/{name}" for i in layers for name in names)
            for names in branches
        )
        return Stream(("embed", *writers), (*norms, "norm"), obstacle)

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
