"""Token mixers. Every one is called `mixer(x, *, mask=None, train=False) -> y`.

x is [B, L, D] or, for mixers that accept `grid`, [B, H, W, C]; y has its shape. `mask`
is boolean over the positions (True is a token, False is padding). Causal ones take
`decode=True` as well, which continues rows token by token, see `attention.cache`.
`build("sla", num_heads=3)` gives a factory; `MIXERS` is the table of all of them.
"""

import functools
from typing import Any

from normjax.attention import decay
from normjax.attention.base import MIXERS, linear_attention, softmax_attention
from normjax.attention.differential import DifferentialAttention
from normjax.attention.distance import DISTANCES
from normjax.attention.gated_linear import (
    BidirectionalGatedLinearAttention,
    GatedLinearAttention,
)
from normjax.attention.griffin import RGLRU, LocalAttention, RecurrentBlock
from normjax.attention.lightning import LightningAttention, TransNormerAttention
from normjax.attention.linear import FocusedLinearAttention, SimplifiedLinearAttention
from normjax.attention.mixture_of_head import MixtureOfHeadAttention
from normjax.attention.pattention import Pattention, PattentionMixer
from normjax.attention.pooling import IdentityMixer, Pooling
from normjax.attention.rala import (
    GatedSoftmaxAttention,
    RankAugmentedLinearAttention,
)
from normjax.attention.rectified import (
    GatedRectifiedLinearAttention,
    RectifiedLinearAttention,
)
from normjax.attention.reduction import (
    LinearSpatialReductionAttention,
    SpatialReductionAttention,
    SpatialReductionFocusedLinearAttention,
    SpatialReductionSimplifiedLinearAttention,
)
from normjax.attention.softmax import SoftmaxAttention
from normjax.attention.stripes import (
    CrossShapedWindowAttention,
    CrossShapedWindowFocusedLinearAttention,
    CrossShapedWindowSimplifiedLinearAttention,
)
from normjax.attention.window import (
    WindowAttention,
    WindowFocusedLinearAttention,
    WindowSimplifiedLinearAttention,
)
from normjax.core.registry import Spec

__all__ = [
    "DISTANCES",
    "MIXERS",
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
    """
    return MIXERS.factory(spec, **arguments)
