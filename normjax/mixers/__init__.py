"""Token mixers. Every one is called `mixer(x, *, mask=None, train=False) -> y`.

x is [B, L, D] or, for mixers that accept `grid`, [B, H, W, C]; y has its shape. `mask`
is boolean over the positions (True is a token, False is padding). Causal ones take
`decode=True` as well, which continues rows token by token, see `mixers.cache`.
`build("sla", num_heads=3)` gives a factory; `MIXERS` is the table of all of them.

A mixer stands in `sequence/` or `grid/`, in the file of its key or of the beginning of
its key (`window_sla` in window.py); `gated_rela` stands beside `rela`. What it does it
calls in reading order: `steps` make and place queries, keys and values, `cache`
remembers, `cores` mix the positions of maps, all over the pure functions of `ops`.
"""

import functools
from typing import Any

from normjax.core.registry import Spec
from normjax.mixers.base import CORES, MIXERS, RELATIVE_BIASES
from normjax.mixers.grid.cross_shaped_window import (
    CrossShapedWindowAttention,
    CrossShapedWindowFocusedLinearAttention,
    CrossShapedWindowSimplifiedLinearAttention,
)
from normjax.mixers.grid.focused_linear import FocusedLinearAttention
from normjax.mixers.grid.identity import IdentityMixer
from normjax.mixers.grid.linear_spatial_reduction import (
    LinearSpatialReductionAttention,
)
from normjax.mixers.grid.pooling import Pooling
from normjax.mixers.grid.rala import (
    GatedSoftmaxAttention,
    RankAugmentedLinearAttention,
)
from normjax.mixers.grid.sla import SimplifiedLinearAttention
from normjax.mixers.grid.spatial_reduction import (
    SpatialReductionAttention,
    SpatialReductionFocusedLinearAttention,
    SpatialReductionSimplifiedLinearAttention,
)
from normjax.mixers.grid.vig import BidirectionalGatedLinearAttention
from normjax.mixers.grid.whole_map import WholeMapAttention
from normjax.mixers.grid.window import (
    WindowAttention,
    WindowFocusedLinearAttention,
    WindowSimplifiedLinearAttention,
)
from normjax.mixers.ops import decay
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.linear_attention import linear_attention
from normjax.mixers.sequence.differential import DifferentialAttention
from normjax.mixers.sequence.gated_linear import GatedLinearAttention
from normjax.mixers.sequence.grouped_query import GroupedQueryAttention
from normjax.mixers.sequence.lightning import LightningAttention
from normjax.mixers.sequence.local_attention import LocalAttention
from normjax.mixers.sequence.mixture_of_head import MixtureOfHeadAttention
from normjax.mixers.sequence.pattention import Pattention, PattentionMixer
from normjax.mixers.sequence.rela import (
    GatedRectifiedLinearAttention,
    RectifiedLinearAttention,
)
from normjax.mixers.sequence.rg_lru import RGLRU, RecurrentBlock
from normjax.mixers.sequence.softmax import SoftmaxAttention
from normjax.mixers.sequence.transnormer import TransNormerAttention

__all__ = [
    "CORES",
    "MIXERS",
    "RELATIVE_BIASES",
    "RGLRU",
    "BidirectionalGatedLinearAttention",
    "CrossShapedWindowAttention",
    "CrossShapedWindowFocusedLinearAttention",
    "CrossShapedWindowSimplifiedLinearAttention",
    "DifferentialAttention",
    "FocusedLinearAttention",
    "GatedLinearAttention",
    "GatedRectifiedLinearAttention",
    "GatedSoftmaxAttention",
    "GroupedQueryAttention",
    "IdentityMixer",
    "LightningAttention",
    "LinearSpatialReductionAttention",
    "LocalAttention",
    "MixtureOfHeadAttention",
    "Pattention",
    "PattentionMixer",
    "Pooling",
    "RankAugmentedLinearAttention",
    "RectifiedLinearAttention",
    "RecurrentBlock",
    "SimplifiedLinearAttention",
    "SoftmaxAttention",
    "SpatialReductionAttention",
    "SpatialReductionFocusedLinearAttention",
    "SpatialReductionSimplifiedLinearAttention",
    "TransNormerAttention",
    "WholeMapAttention",
    "WindowAttention",
    "WindowFocusedLinearAttention",
    "WindowSimplifiedLinearAttention",
    "build",
    "decay",
    "linear_attention",
    "softmax_attention",
]


def build(spec: Spec, **arguments: Any) -> functools.partial:
    """A mixer factory: `build("softmax", num_heads=3)()` is a Flax module.

    Args:
      spec: registry key, a dict with `name` and arguments, or a ready factory.
      **arguments: arguments of the module where the spec gives none.

    Raises:
      UserError: unknown key or argument; the message lists near matches.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.build("softmax", num_heads=2, relative_bias="alibi")
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer().init_with_output(jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['proj', 'qkv']
    """
    return MIXERS.factory(spec, **arguments)
