"""What models of tokens have in common: table, norms around the layers, output."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.mixers.ops.masks import only_tokens
from normjax.models.base import patterns_of
from normjax.models.block import Block, feeding, looking, mixing
from normjax.models.layers import Factory
from normjax.models.placement import Placement, placement_of
from normjax.models.remat import recomputed

TABLE_READS = "the output layer is the table of embeddings"
"""Why the last norm of a tied model cannot move."""


class TokenModel(nn.Module):
    """Base: tokens of one vocabulary in, logits of the next ones out.

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformers.  depth: layers of each.
      mlp_hidden: width inside the MLP, or those of the layers in turn; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      rotary_base: see `mixers.SoftmaxAttention`; None for no rotation.
      tied: the table of embeddings is also the output layer.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embeddings.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    dim: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_hidden: int | tuple[int, ...] | None = None
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
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        return {"seq", "causal"}

    def _table(self) -> jax.Array:
        shape = (self.vocab_size, self.dim)
        return self.param("embed", nn.initializers.normal(0.02), shape)

    def _embedded(
        self, table, tokens, mask, train, prefix="", places=None
    ) -> jax.Array:
        """What the residual stream of a transformer starts with.

        Args:
          places: what is added to the tokens for their positions; None for nothing.
        """
        x = table.astype(self.dtype or table.dtype)[tokens]
        x = x if places is None else x + places.astype(x.dtype)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        if not placement_of(self.placement).embedding:
            return x
        return self._normalized(f"{prefix}embed_norm", x, mask, train)

    def _finished(self, x, mask, train, prefix="") -> jax.Array:
        """What the residual stream of a transformer ends as."""
        if not placement_of(self.placement).final:
            return x
        return self._normalized(f"{prefix}norm", x, mask, train)

    def _normalized(self, name, x, mask, train) -> jax.Array:
        valid = mask if self.mask_norms else None
        norm = self.norm(name=name, dtype=self.dtype)
        return norm(only_tokens(x, valid), mask=valid, train=train)

    def _logits(self, x, table) -> jax.Array:
        """[B, L, vocab_size] in at least float32."""
        if self.tied:
            logits = x @ table.astype(x.dtype).T
        else:
            dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
            head = Dense(self.vocab_size, use_bias=False, name="head", **dense)
            logits = head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _hidden(self, layer: int) -> int:
        """Width inside the MLP of a layer."""
        wanted = 4 * self.dim if self.mlp_hidden is None else self.mlp_hidden
        (widths,) = patterns_of(wanted, 1)
        return widths[layer % len(widths)]

    @nn.nowrap
    def _block(
        self, layer: int, mixer: Factory, cross: Factory | None = None, **where
    ) -> Block:
        """A layer of these mixers."""
        own = {"dtype": self.dtype}
        norm = functools.partial(self.norm, **own)
        inside = {"hidden": self._hidden(layer), **own}
        mlp = with_defaults(self.mlp, keep_size=False)
        mlp = functools.partial(mlp, activation=self.activation, **inside)
        placement, last = placement_of(self.placement).branches(layer, self.depth)
        rate = {"drop_path": self.drop_path_rate * layer / max(self.depth - 1, 1)}
        branches = [mixing(norm, functools.partial(mixer, **own), placement, **rate)]
        if cross is not None:
            cross = functools.partial(cross, **own)
            branches.append(looking(norm, cross, placement, **rate))
        branches.append(feeding(norm, mlp, last, **rate))
        kind = recomputed(Block, self.remat, static_argnums=(2, 4))
        return kind(tuple(branches), self.mask_norms, **where)

    @nn.nowrap
    def _first_sites(self, prefix: str = "") -> list[FoldSite]:
        """The norm behind the table, if there is one."""
        if not placement_of(self.placement).embedding:
            return []
        obstacle, norm = "its output is the residual stream", self.norm(parent=None)
        return [FoldSite(f"{prefix}embed_norm", norm, obstacle=obstacle)]

    @nn.nowrap
    def _last_sites(self) -> list[FoldSite]:
        """The norm before the output layer, if there is one."""
        norm = self.norm(parent=None)
        if not placement_of(self.placement).final:
            return []
        if self.tied:
            return [FoldSite("norm", norm, obstacle=TABLE_READS)]
        return [FoldSite("norm", norm, readers=("head",))]
