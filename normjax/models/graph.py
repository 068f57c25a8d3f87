"""Transformer of graphs: nodes, and edges if they have types (Dwivedi and Bresson)."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.moments import masked_mean
from normjax.core.ranges import COUNT, Range
from normjax.core.registry import unwrapped, with_defaults
from normjax.mixers.ops.graph import all_pairs, flip_signs
from normjax.mixers.ops.masks import only_tokens
from normjax.models.base import MODELS
from normjax.models.layers import Factory
from normjax.models.mlps import MLP

READOUTS = ("mean", "nodes")


class GraphLayer(nn.Module):
    """Attention along edges and an MLP, each followed by a norm of the sum.

        x = norm(x + attention(x, e)),   x = norm(x + mlp(x))

    and the same of the edges with what the attention makes of them.

    Attributes:
      mixer, norm, activation: factories.  hidden: width inside the MLPs.
      dtype: of the computation; parameters are float32.
    """

    mixer: Factory
    norm: Factory
    activation: Factory
    hidden: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        edges: jax.Array | None,
        adjacency: jax.Array,
        mask: jax.Array | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        """x: [B, N, C], edges: [B, N, N, C] -> same.

        Args:
          adjacency: bool [B, N, N]; norms of edges count no other pairs.
          mask: bool [B, N]; False is no node.
        """

        def rest(x, change, prefix, valid):
            """The stream after the attention, and after the MLP."""

            def norm(name, x):
                make = self.norm(name=f"{prefix}{name}", dtype=self.dtype)
                return make(x, mask=valid, train=train)

            x = norm("norm1", x + change)
            mlp = MLP(self.hidden, self.activation, self.dtype, name=f"{prefix}mlp")
            return norm("norm2", x + mlp(x))

        mixer = self.mixer(name="mixer", dtype=self.dtype)
        told = {"adjacency": adjacency, "mask": mask, "train": train}
        if edges is None:
            return rest(x, mixer(x, **told), "", mask), None
        y, made = mixer(x, edges=edges, **told)
        return rest(x, y, "", mask), rest(edges, made, "edge_", adjacency)


@MODELS.register("graph", "seq")
class Graph(nn.Module):
    """Graph Transformer (Dwivedi and Bresson, 2020): of a graph, or of its nodes.

    Types of nodes are embedded, their Laplacian positions added; then layers, see
    `GraphLayer`, and an MLP of C / 2 and C / 4 on the mean of the nodes or on each.

    Attributes:
      num_classes: width of the result.
      vocab_size: types of nodes.
      edge_types: types of edges; 0: they have none, and no stream of their own.
      positions: Laplacian positions of a node, whose signs are drawn anew for every
        batch in training; 0: there are none.
      readout: "mean" of the nodes of a graph, or "nodes", one by one.
      dim, depth, num_heads: of the transformer.
      norm, mixer, activation: factories (see `models.build`, which takes keys); the
        mixer takes `adjacency` and `edges`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"dim": 8, "depth": 1, "num_heads": 2, "positions": 3}
      >>> model = models.build("graph", num_classes=1, vocab_size=28, **size)
      >>> nodes, positions = jnp.zeros((2, 5), int), jnp.zeros((2, 5, 3))
      >>> ring = jnp.roll(jnp.eye(5, dtype=bool), 1, 1)[None]  # from i + 1 to i
      >>> given = {"adjacency": ring, "positions": positions}
      >>> y, _ = model.init_with_output(jax.random.key(0), nodes, **given)
      >>> y.shape
      (2, 1)
    """

    num_classes: int
    vocab_size: int
    edge_types: int = 0
    positions: int = 0
    readout: str = "mean"
    dim: int = 64
    depth: int = 10
    num_heads: int = 8
    norm: Any = "batch_norm"
    mixer: Any = "graph_transformer"
    activation: Any = "relu"
    dtype: Dtype | None = None

    ranges: ClassVar[Mapping[str, Range]] = {"edge_types": COUNT, "positions": COUNT}

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see: nodes, and pairs of them."""
        if self.readout not in READOUTS:
            raise UserError(one_of("readout", self.readout, READOUTS))
        return {"seq", "grid"} if self.edge_types else {"seq"}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer gets to see."""
        return ({"seq"},)

    @nn.compact
    def __call__(
        self,
        nodes: jax.Array,
        train: bool = False,
        *,
        adjacency: jax.Array | None = None,
        edges: jax.Array | None = None,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """nodes: int [B, N], their types -> [B, num_classes] or [B, N, num_classes].

        In float32.

        Args:
          train: whether the model trains.
          adjacency: bool, broadcastable to [B, N, N]; [b, i, j] is an edge from j to i.
            None: all pairs of different nodes.
          edges: int [B, N, N], their types; None: all 0.
          positions: [B, N, P], as of `mixers.laplacian_positions`; None: zeros.
          mask: bool [B, N]; False is no node.

        Raises:
          UserError: types of edges or positions that the model has no place for, or a
            mixer that does not know of edges.
        """
        self._check(edges, positions)
        shape = (*nodes.shape, nodes.shape[1])
        adjacency = all_pairs(nodes.shape[1], mask) if adjacency is None else adjacency
        adjacency = jnp.broadcast_to(adjacency, shape)
        if mask is not None:
            adjacency = adjacency & mask[:, None] & mask[:, :, None]
        x = self._embedded("embed", self.vocab_size, nodes)
        if self.positions:
            x = x + self._places(x, positions, train)
        x, e = only_tokens(x, mask), None
        if self.edge_types:
            types = jnp.zeros(shape, int) if edges is None else edges
            e = self._embedded("edge_embed", self.edge_types, types)
        for i in range(self.depth):
            x, e = self._layer(i, name=f"blocks_{i}")(x, e, adjacency, mask, train)
        if self.readout == "mean":
            valid = None if mask is None else mask
            mean, _ = masked_mean(x, (1,), mask=valid)
            x = mean.astype(x.dtype).reshape(x.shape[0], -1)
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        for i in (1, 2):
            width = max(1, self.dim >> i)
            x = jax.nn.relu(Dense(width, name=f"head_{i}", **dense)(x))
        y = Dense(self.num_classes, name="head", **dense)(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _check(self, edges: jax.Array | None, positions: jax.Array | None) -> None:
        if edges is not None and not self.edge_types:
            raise UserError("model 'graph': edges have types, edge_types is 0")
        given = 0 if positions is None else positions.shape[-1]
        if given and given != self.positions:
            raise UserError(
                f"model 'graph': {given} positions of a node instead of "
                f"{self.positions} (positions)"
            )
        make, _ = unwrapped(self.mixer)
        if "adjacency" not in inspect.signature(make.__call__).parameters:
            name = getattr(make, "__name__", make)
            raise UserError(f"model 'graph': {name} knows no edges (adjacency)")

    def _embedded(self, name: str, types: int, given: jax.Array) -> jax.Array:
        table = self.param(name, nn.initializers.normal(1.0), (types, self.dim))
        return table.astype(self.dtype or table.dtype)[given]

    def _places(self, x: jax.Array, positions: jax.Array | None, train: bool):
        """Laplacian positions as wide as x, their signs at random in training."""
        if positions is None:
            positions = jnp.zeros((*x.shape[:2], self.positions), x.dtype)
        elif train:
            positions = flip_signs(self.make_rng("dropout"), positions)
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        return Dense(self.dim, name="places", **dense)(positions.astype(x.dtype))

    @nn.nowrap
    def _layer(self, index: int, **where) -> GraphLayer:
        known = {"layer": index, "num_layers": self.depth, "num_heads": self.num_heads}
        mixer = with_defaults(self.mixer, **known)
        parts = {"mixer": mixer, "norm": self.norm, "activation": self.activation}
        return GraphLayer(hidden=2 * self.dim, dtype=self.dtype, **parts, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm, all of which are the stream itself."""
        norm, why = self.norm(parent=None), "its output is the residual stream"
        names = ["norm1", "norm2"]
        names += [f"edge_{name}" for name in names] if self.edge_types else []
        return [
            FoldSite(f"blocks_{i}/{name}", norm, obstacle=why)
            for i in range(self.depth)
            for name in names
        ]
