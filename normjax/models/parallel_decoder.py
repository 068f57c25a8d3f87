"""ParScale: a decoder that reads every row in several streams and weighs them."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream
from normjax.core.moments import at_least_float32
from normjax.core.ranges import BELOW_ONE, POSITIVE
from normjax.core.registry import unwrapped, with_defaults
from normjax.models.base import MODELS
from normjax.models.decoder import Decoder
from normjax.models.layers import Factory
from normjax.models.placement import placement_of

_WEIGHED = "the streams that read it are weighed"


class StreamAggregation(nn.Module):
    """y = sum_p w_p H_p, w = softmax(W2 silu(W1 u + b1) + b2) smoothed, of each token.

    u has all streams side by side, the channels of one after the other: entry c P + p
    is channel c of stream p. w becomes (1 - e) w + e / P.

    Attributes:
      smoothing: e.
      dtype: of the computation; softmax and sum in at least float32.
    """

    smoothing: float = 0.01
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, streams: jax.Array) -> jax.Array:
        """streams: [P, B, L, D] -> [B, L, D]."""
        count, *_, width = streams.shape
        last = jnp.moveaxis(streams, 0, -1)  # [B, L, D, P]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        h = Dense(width, name="fc1", **dense)(last.reshape(*last.shape[:2], -1))
        scores = Dense(count, name="fc2", **dense)(jax.nn.silu(h))
        weights = jax.nn.softmax(at_least_float32(scores), -1)
        weights = (1 - self.smoothing) * weights + self.smoothing / count
        wide = last.astype(weights.dtype)
        return jnp.sum(wide * weights[:, :, None], -1).astype(streams.dtype)


@MODELS.register("parallel_decoder", "seq", "causal", "decode")
class ParallelDecoder(Decoder):
    """ParScale (Chen et al., 2025): P streams that differ by learned prefixes.

    The embedded tokens go P times through the layers, whose mixers have prefixes of
    each stream (`mixers.PrefixAttention`); after the last norm the streams are weighed,
    token by token (`StreamAggregation`), before the output layer. A cache has P rows
    for each row of tokens. One stream is a `decoder`.

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
      max_length: positions that there is a learned embedding of; None: there is none.
      scan_layers: compile one block and run it `depth` times, see `Decoder`.
      streams: P, at least 2.
      smoothing: the weight of a stream is at least smoothing / P.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"dim": 16, "depth": 1, "num_heads": 2}
      >>> model = models.build("parallel_decoder", vocab_size=11, streams=3, **size)
      >>> tokens = jnp.array([[10, 4, 5]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> variables["params"]["blocks_0"]["mixer"]["prefix_key"].shape
      (3, 48, 1, 8)
    """

    mixer: Any = "prefix_attention"
    streams: int = 2
    smoothing: float = 0.01

    ranges: ClassVar = {
        "streams": POSITIVE,
        "smoothing": BELOW_ONE,
    }

    def _stack(self, x, train, context, decode):
        if self.streams < 2:
            raise UserError("one stream has nothing to weigh: that is a decoder")
        count = self.streams
        known = {k: v if v is None else _tiled(v, count) for k, v in context.items()}
        return super()._stack(_tiled(x, count), train, known, decode)

    def _finished(self, x, mask, train, prefix=""):
        mask = None if mask is None else _tiled(mask, self.streams)
        x = super()._finished(x, mask, train, prefix)
        streams = x.reshape(self.streams, -1, *x.shape[1:])
        return StreamAggregation(self.smoothing, self.dtype, name="aggregate")(streams)

    @nn.nowrap
    def _mixer(self, layer: int = 0) -> Factory:
        made = with_defaults(super()._mixer(layer), streams=self.streams)
        if "streams" not in made.keywords:
            name = unwrapped(made)[0].__name__
            hint = "such as prefix_attention: the streams would all be the same"
            raise UserError(f"{name} has no prefixes by stream, {hint}")
        return made

    @nn.nowrap
    def _last_sites(self) -> list[FoldSite]:
        if not placement_of(self.placement).final:
            return []
        return [FoldSite("norm", self.norm(parent=None), obstacle=_WEIGHED)]

    @nn.nowrap
    def stream(self) -> Stream:
        """What writes into the residual stream, of which there are several here."""
        return Stream((), (), _WEIGHED)


def _tiled(t: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count * B, ...], row stream * B + example."""
    return jnp.tile(t, (count, *[1] * (t.ndim - 1)))
