"""WideNet: one attention and one mixture of experts for all layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.broadcast import mean_over_positions, repeat_over_batch
from normjax.core.dense import Dense, trunc_normal
from normjax.models.base import MODELS
from normjax.models.sinusoids import POSITIONS
from normjax.models.vit import ViT


@MODELS.register("widenet", "seq", "grid")
class WideNet(ViT):
    """WideNet (Xue et al., 2022): layers share all but their norms.

    A token of zeros before those of the image, a table of positions, layers with one
    attention, one router and one set of experts; then tanh(W mean) over all tokens, the
    first among them, and the head.

    Attributes:
      num_classes: width of the logits.
      dim, depth, num_heads, mlp_ratio: of the transformer.
      norm, mixer, activation, mlp, stem: factories (see `models.build`, which takes
        keys).
      embed_norm: factory of the norms in the stem; None for `norm`.
      pool: unused: all tokens are averaged.
      positions: the table that is added to the tokens: "learned", "sine" or
        "stored_sine"; see `models.sinusoids.POSITIONS`.
      placement: where the norms sit; a key of `models.placement.PLACEMENTS`.
      share_layers: all layers have the weights of one mixer and one MLP.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      dropout_rate: on the embedding.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.
      scan_layers: compile one block and run it `depth` times; without `share_layers`.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> stem = {"name": "patch", "patch_size": 4}
      >>> size = {"dim": 8, "depth": 2, "num_heads": 2, "stem": stem}
      >>> model = models.build("widenet", num_classes=10, **size)
      >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(1), images)
      >>> sorted(variables["params"])[:4]
      ['blocks_0', 'blocks_1', 'head', 'mixer']
    """

    activation: Any = "gelu"
    mlp: Any = "mixture_of_experts"
    share_layers: bool = True

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms and the mixer get to see."""
        super().layouts()
        return {"seq"}

    def _embed(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1, self.dim)
        x = jnp.concatenate([jnp.zeros_like(x[:, :1]), x], 1)
        table = POSITIONS[self.positions](self, x.shape[1:])
        x = x + repeat_over_batch(table.astype(x.dtype), len(x))
        return nn.Dropout(self.dropout_rate)(x, deterministic=not train)

    def _read(self, x: jax.Array) -> list[jax.Array]:
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        return [jnp.tanh(Dense(self.dim, name="neck", **init)(mean_over_positions(x)))]

    @nn.nowrap
    def _heads(self) -> tuple[str, ...]:
        return ("head",)

    @nn.nowrap
    def _readers(self) -> tuple[str, ...]:
        return ("neck",)
