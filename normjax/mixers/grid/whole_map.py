"""Attention of every position to the whole map."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.core.registry import Part, Spec
from normjax.mixers.base import CORES, MIXERS, Mixer
from normjax.mixers.steps import dense_of, normalized_maps, own_core, project


@MIXERS.register("whole_map", "grid", "mask")
class WholeMapAttention(Mixer):
    """A core on the whole map: y = proj(core(q, k, v)), q, k, v = W x.

    What it costs the core says: O(L**2 D) multiply-adds with softmax, O(L K D) with the
    linear ones.

    Attributes:
      core: what attends: a key of `mixers.CORES` ("softmax", "relative_softmax", "sla",
        "focused_linear"), a dict with `name` and arguments, or a factory.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> core = {"name": "focused_linear", "focusing_factor": 2}
      >>> mixer = mixers.WholeMapAttention(num_heads=2, core=core)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['dwc_bias', 'dwc_kernel', 'positional_encoding', 'proj', 'qkv', 'scale']
    """

    core: Spec = "softmax"
    qkv_bias: bool = True

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
          UserError: initialised for another grid, or D does not split into heads.
        """
        core = own_core(self)
        q, k, v = project(self, x)
        q, k = normalized_maps(self, q, k, mask, train)
        o = core(q, k, v, mask=mask)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o)
