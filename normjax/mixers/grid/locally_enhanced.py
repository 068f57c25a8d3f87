"""Attention to the whole map and a convolution beside it (SG-Former)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.grid.self_guided import enhanced
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of, normalized_maps, own_core, project


@MIXERS.register("locally_enhanced", "grid", "mask")
class LocallyEnhancedAttention(Mixer):
    """Attention to the whole map, and what is near (SG-Former's last stage).

        y = proj(core(q(x), k(x), v(x)) + dwconv3x3(W x))

    (Ren et al., 2023). O(L**2 D) multiply-adds with the default core. Softmax in at
    least float32.

    Attributes:
      core: what attends: a key of `mixers.CORES`, a dict with `name` and arguments, or
        a factory.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.LocallyEnhancedAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['lepe_bias', 'lepe_in', 'lepe_kernel', 'proj', 'qkv'])
    """

    core: Spec = "softmax"
    qkv_bias: bool = True

    # The convolution has zeros around the map.
    reads: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[Mapping[str, Part]] = {
        "core": Part(CORES, given=frozenset({"num_heads"})),
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of the core fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: D does not split into heads.
        """
        x, width = only_valid(x, mask), self.qkv_features or x.shape[-1]
        q, k, v = project(self, x)
        q, k = normalized_maps(self, q, k, mask, train)
        o = own_core(self)(q, k, v, mask=mask) + enhanced(self, x, width)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)
