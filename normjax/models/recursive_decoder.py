"""Recursive transformers: a decoder that loops, with low-rank deltas by depth."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.collections import CACHE, PARAMS, TRANSIENT
from normjax.core.dense import Dense, SplitDense, linear
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite, Stream
from normjax.core.ranges import COUNT, POSITIVE
from normjax.models.base import MODELS
from normjax.models.block import Block, sites_of
from normjax.models.decoder import Decoder
from normjax.norms import NORMS

_SHARED = "layers share their weights"

STARTS = ("stepwise", "average", "lower")


class Loop(nn.Module):
    """The blocks of one loop; each linear layer y = x W + x A B with deltas of A and B.

    Attributes:
      blocks: first to last, unbound.
    """

    blocks: tuple[Block, ...]

    def __call__(self, x: jax.Array, deltas: Any, *arguments) -> jax.Array:
        """x: [B, L, D] -> same; the rest as of `Block`."""
        with nn.intercept_methods(functools.partial(self._adding, deltas)):
            for block in self.blocks:
                x = block(x, *arguments)
        return x

    @nn.nowrap
    def _adding(self, deltas, call, args, kwargs, context):
        y = call(*args, **kwargs)
        if not deltas or not _is_linear(context):
            return y
        delta, x = deltas, args[0]
        for name in context.module.path[len(self.path) :]:
            delta = delta[name]
        outputs = y if isinstance(y, tuple) else (y,)
        down, up = (t.astype(outputs[0].dtype) for t in (delta["down"], delta["up"]))
        x = x.astype(down.dtype)
        outputs = tuple(
            part + linear(linear(x, a), b)
            for part, a, b in zip(outputs, down, up, strict=True)
        )
        return outputs if isinstance(y, tuple) else outputs[0]


def _is_linear(context: Any) -> bool:
    kinds = Dense, SplitDense
    return context.method_name == "__call__" and isinstance(context.module, kinds)


@MODELS.register("recursive_decoder", "seq", "causal", "decode")
class RecursiveDecoder(Decoder):
    """A decoder whose layer l of depth is unique layer l mod K (Bae et al., 2025).

    K = depth / loops layers run `loops` times. With a `rank` (Relaxed Recursive
    Transformers) each of their linear layers, part by part (queries, keys, values), has
    a low-rank delta for each layer of depth: y = x W + x A B. Norms are those of the
    unique layers. Each layer of depth keeps a cache of its own. `recursive_start` makes
    the variables of those of a decoder.

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformer.  depth: layers, those of all loops.
      mlp_hidden: width inside the MLP, or those of the layers in turn; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys);
        norms without running statistics.
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
      max_length: positions that there is a learned embedding of; None: there is none.
      scan_layers: unused: a loop is compiled once.
      loops: a divisor of `depth`.
      rank: of the deltas, at most the width of either side; 0: none.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"vocab_size": 11, "dim": 8, "num_heads": 2, "depth": 6}
      >>> model = models.build("recursive_decoder", loops=3, rank=2, **size)
      >>> tokens = jnp.array([[10, 4, 5]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> sorted(variables["params"]["loop"])
      ['blocks_0', 'blocks_1']
    """

    loops: int = 2
    rank: int = 0

    ranges: ClassVar = {"loops": POSITIVE, "rank": COUNT}

    @property
    def scanned(self) -> tuple[str, ...]:
        """Nothing has a first axis of layers in all its variables."""
        return ()

    @property
    def unique(self) -> int:
        """K, the layers that there are weights of."""
        if self.depth % self.loops:
            raise UserError(f"{self.depth} layers do not make {self.loops} loops")
        return self.depth // self.loops

    def _stack(self, x, train, context, decode):
        entry = NORMS.entry_of(self.norm)
        if entry is not None and "batch_stats" in entry.tags:
            hint = "each loop would count the others' statistics as its own"
            raise UserError(f"norm {entry.name!r} of a recursive decoder: {hint}")
        deltas = self.param("deltas", self._new_deltas) if self.rank else {}

        def body(loop, x, deltas):
            return loop(x, deltas, train, context, decode), None

        scan = nn.scan(
            body,
            variable_axes=dict.fromkeys((CACHE, *TRANSIENT), 0),
            variable_broadcast=PARAMS,
            split_rngs={PARAMS: False, "dropout": True},
            length=self.loops,
        )
        return scan(self._loop(name="loop"), x, deltas)[0]

    @nn.nowrap
    def _loop(self, **where) -> Loop:
        blocks = (self._layer(k, parent=None) for k in range(self.unique))
        return Loop(tuple(blocks), **where)

    @nn.nowrap
    def _new_deltas(self, key: jax.Array) -> dict[str, Any]:
        """{block: ... {"down" [loops, parts, in, r], "up" [loops, parts, r, out]}}."""
        sizes = {}

        def seen(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if _is_linear(context):
                parts = y if isinstance(y, tuple) else (y,)
                found = args[0].shape[-1], parts[0].shape[-1], len(parts)
                sizes["/".join(context.module.path)] = found
            return y

        loop, x = self._loop(parent=None), jnp.zeros((1, 1, self.dim))
        with nn.intercept_methods(seen):
            jax.eval_shape(lambda k: loop.init(k, x, {}, False), jax.random.key(0))
        flat = {}
        for i, (path, (inputs, outputs, parts)) in enumerate(sorted(sizes.items())):
            rank, lead = min(self.rank, inputs, outputs), (self.loops, parts)
            own, scale = jax.random.fold_in(key, i), inputs**-0.5
            down = scale * jax.random.normal(own, (*lead, inputs, rank))
            flat[f"{path}/down"] = down
            flat[f"{path}/up"] = jnp.zeros((*lead, rank, outputs))
        return unflatten_dict(flat, sep="/")

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        sites = self._first_sites()
        for k in range(self.unique):
            for site in sites_of(f"loop/blocks_{k}", self._layer(k, parent=None)):
                sites.append(FoldSite(site.path, site.norm, obstacle=_SHARED))
        return sites + self._last_sites()

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream, which no norm alone reads."""
        return Stream((), (), _SHARED)


def recursive_start(
    model: RecursiveDecoder, variables: Mapping[str, Any], start: str = "average"
) -> dict[str, Any]:
    """Variables of a recursive decoder from those of a decoder with all its layers.

    Unique layer k is layer round(linspace(0, L - 1, K)[k]) ("stepwise"), the mean of
    layers k, k + K, ... ("average") or layer k ("lower"). Deltas are the truncated
    singular value decomposition of what each layer has besides: A = U_r, B = S_r V_r^T
    of W_l - W'_k = U S V^T; with all ranks they give its weights back. Where the
    decoder has more layers than `model`, those at round(linspace(0, L - 1, depth))
    stay. Computed in float64.

    Args:
      model: of `models.build`.
      variables: of a `decoder` that is as `model`, without loops.
      start: "stepwise", "average" or "lower".

    Raises:
      UserError: another start, too few layers, or arrays of other shapes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"vocab_size": 11, "dim": 8, "num_heads": 2, "depth": 4}
      >>> whole = models.build("decoder", **size)
      >>> looped = models.build("recursive_decoder", loops=2, rank=8, **size)
      >>> tokens = jnp.array([[10, 4, 5]])
      >>> shapes = jax.eval_shape(whole.init, jax.random.key(0), tokens)
      >>> trained = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
      >>> variables = models.recursive_start(looped, trained, "lower")
      >>> variables["params"]["deltas"]["blocks_1"]["mlp"]["fc2"]["down"].shape
      (2, 1, 32, 8)
    """
    if start not in STARTS:
        raise UserError(one_of("start", start, STARTS))
    params = jax.tree.map(np.asarray, dict(variables[PARAMS]))
    layers = [params.pop(name) for name in _names(params)]
    if len(layers) < model.depth:
        raise UserError(f"{len(layers)} layers are fewer than {model.depth}")
    layers = [layers[i] for i in _spread(len(layers), model.depth)]
    loop = {
        f"blocks_{k}": _shared(layers, k, model, start) for k in range(model.unique)
    }
    made = {**params, "loop": loop}
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    wanted: Any = jax.eval_shape(model.init, jax.random.key(0), tokens)[PARAMS]
    if model.rank:
        flat = {}
        for path, shape in flatten_dict(wanted["deltas"], sep="/").items():
            if path.endswith("/down"):
                where = path.removesuffix("/down")
                pair = _residuals(layers, loop, model, where, shape.shape)
                flat |= {f"{where}/{n}": t for n, t in pair.items()}
        made["deltas"] = unflatten_dict(flat, sep="/")
    theirs, ours = (jax.tree.map(np.shape, tree) for tree in (made, dict(wanted)))
    if theirs != ours:
        raise UserError("the decoder differs from the recursive one in more than loops")
    dtype = params["embed"].dtype
    return {PARAMS: jax.tree.map(lambda a: jnp.asarray(a, dtype), made)}


def _names(params: Mapping[str, Any]) -> list[str]:
    count = sum(name.startswith("blocks_") for name in params)
    return [f"blocks_{i}" for i in range(count)]


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` layers, the first and the last among them."""
    return [round(i) for i in np.linspace(0, count - 1, wanted)]


def _shared(layers: list, k: int, model: RecursiveDecoder, start: str) -> Any:
    """The unique layer k."""
    if start == "average":
        own = layers[k :: model.unique]
        return jax.tree.map(lambda *t: np.mean(np.asarray(t, np.float64), 0), *own)
    return layers[_spread(model.depth, model.unique)[k] if start == "stepwise" else k]


def _residuals(
    layers: list, loop: Any, model: RecursiveDecoder, where: str, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """A and B of the linear layer at `where` in all loops."""
    (block, *path), (loops, parts, _, rank) = where.split("/"), shape
    k = int(block.removeprefix("blocks_"))

    def kernels(tree):
        for name in path:
            tree = tree[name]
        return np.split(np.asarray(tree["kernel"], np.float64), parts, -1)

    own = [kernels(layers[k + i * model.unique]) for i in range(loops)]
    u, s, v = np.linalg.svd(np.stack(own) - np.stack(kernels(loop[block])), False)
    up = s[..., :rank, None] * v[..., :rank, :]
    return {"down": u[..., :rank], "up": up}
