"""Encoder of tokens that reads a text as a whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense, trunc_normal
from normjax.core.folding import FoldSite
from normjax.models.base import MODELS
from normjax.models.encoder import Encoder


@MODELS.register("text_encoder", "seq")
class TextEncoder(Encoder):
    """Encoder whose head reads the mean over the tokens: what a text is as a whole.

        head(mean over what is no padding of x), x as of the last layer of `Encoder`

    Attributes:
      vocab_size: tokens.
      dim, num_heads: of the transformer.  depth: layers.
      mlp_hidden: width inside the MLP, or those of the layers in turn; None for 4 dim.
      norm, mixer, activation, mlp: factories (see `models.build`, which takes keys).
      branches: those of a layer, or of the layers in turn; a key of `models.BLOCKS`.
      placement: where the norms sit; a key of `models.PLACEMENTS`, or a `Placement`.
      rotary_base: see `mixers.SoftmaxAttention`; None for no rotation.
      tied: unused: tokens are read and not written.
      mask_norms: padding does not count in the statistics of norms.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embeddings.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
      max_length: positions that there is an embedding of.
      types: kinds of segments that there is an embedding of.
      num_classes: width of the result.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
      >>> model = models.build("text_encoder", vocab_size=30, **size)
      >>> tokens = jnp.array([[3, 1, 4, 1]])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
      >>> jax.eval_shape(model.apply, variables, tokens).shape
      (1, 5)
    """

    num_classes: int = 2

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        train: bool = False,
        *,
        mask: jax.Array | None = None,
        types: jax.Array | None = None,
    ) -> jax.Array:
        """tokens: int [B, L] -> [B, num_classes] in at least float32.

        Args:
          train: whether the model trains.
          mask: bool [B, L]; False is padding, and a row of nothing else gives the bias.
          types: int [B, L], the segment of each token; None: all of the first.

        Raises:
          UserError: more tokens than `max_length`.
        """
        x = self._contextual(self._table(), tokens, train, mask, types)
        counted = jnp.ones(tokens.shape, bool) if mask is None else mask
        total = jnp.sum(jnp.where(counted[..., None], x, 0), 1, dtype=jnp.float32)
        count = jnp.maximum(jnp.sum(counted, 1, keepdims=True), 1)
        mean = (total / count).astype(x.dtype)
        given = {"kernel_init": trunc_normal, "dtype": self.dtype}
        out = Dense(self.num_classes, name="head", **given)(mean)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the linear layers around it."""
        return self._layer_sites(("head",))
