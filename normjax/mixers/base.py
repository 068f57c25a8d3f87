"""The registries of mixers and their parts, and the one class that mixers share."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import trunc_normal
from normjax.core.registry import NORMS, Part, Registry

MIXERS = Registry("mixer")
"""The mixers by key: a row has `name`, `make` (the class) and `tags`.

The tags say what a mixer accepts: `seq` [B, L, D], `grid` [B, H, W, C], `causal`,
`decode` (one token at a time), `memory` (keys and values of other tokens); and what it
uses, a `mask`. `build` makes a factory of a key.

Example:
  >>> from normjax.mixers import MIXERS
  >>> sorted(MIXERS["sla"].tags)
  ['grid', 'mask']
  >>> "memory" in MIXERS["softmax"].tags  # it takes cross-attention
  True
"""

CORES = Registry("core", home="normjax.mixers.cores")
"""What mixes the positions of a map, or of each part of one: `core=` of grid mixers.

By key; a row has `name` and `make`, the class.

Example:
  >>> from normjax.mixers import CORES
  >>> "relative_softmax" in CORES, CORES["relative_softmax"].make.__name__
  (True, 'RelativeSoftmax')
  >>> CORES["sla"].make.__name__
  'SimplifiedLinear'
"""

RELATIVE_BIASES = Registry("relative bias", home="normjax.mixers.relative_bias")
"""What the distance of two tokens does to their score: `relative_bias=` of softmax.

By key; a row has `name` and `make`, the class.

Example:
  >>> from normjax.mixers import RELATIVE_BIASES
  >>> "alibi" in RELATIVE_BIASES, RELATIVE_BIASES["alibi"].make.__name__
  (True, 'Alibi')
"""

QK_NORM = Part(NORMS, passes=frozenset({"causal", "decode"}), needs=frozenset({"seq"}))
"""A norm of queries and keys, which it gets as a sequence [B, L, H, K]."""


class Mixer(nn.Module):
    """What mixers with queries, keys and values have in common: fields, no rule.

    Attributes:
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qk_norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("qkv",)
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"qk_norm": QK_NORM}

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}
