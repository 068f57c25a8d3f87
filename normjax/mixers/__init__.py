"""Token mixers. Every one is called `mixer(x, *, mask=None, train=False) -> y`.

x is [B, L, D] or, for mixers that accept `grid`, [B, H, W, C]; y has its shape. `mask`
is boolean over the positions (True is a token, False is padding). Causal ones take
`decode=True` as well, which continues rows token by token, see `mixers.cache`.
`build("sla", num_heads=3)` gives a factory; `MIXERS` is the table of all of them.
"""

import functools
from typing import Any

from normjax.core.registry import Spec
from normjax.mixers import decay
from normjax.mixers.base import MIXERS, linear_attention, softmax_attention
from normjax.mixers.differential import DifferentialAttention
from normjax.mixers.distance import DISTANCES
from normjax.mixers.gated_linear import (
    BidirectionalGatedLinearAttention,
    GatedLinearAttention,
)
from normjax.mixers.griffin import RGLRU, LocalAttention, RecurrentBlock
from normjax.mixers.lightning import LightningAttention, TransNormerAttention
from normjax.mixers.linear import FocusedLinearAttention, SimplifiedLinearAttention
from normjax.mixers.mixture_of_head import MixtureOfHeadAttention
from normjax.mixers.pattention import Pattention, PattentionMixer
from normjax.mixers.pooling import IdentityMixer, Pooling
from normjax.mixers.rala import (
    GatedSoftmaxAttention,
    RankAugmentedLinearAttention,
)
from normjax.mixers.rectified import (
    GatedRectifiedLinearAttention,
    RectifiedLinearAttention,
)
from normjax.mixers.reduction import (
    LinearSpatialReductionAttention,
    SpatialReductionAttention,
    SpatialReductionFocusedLinearAttention,
    SpatialReductionSimplifiedLinearAttention,
)
from normjax.mixers.softmax import SoftmaxAttention
from normjax.mixers.stripes import (
    CrossShapedWindowAttention,
    CrossShapedWindowFocusedLinearAttention,
    CrossShapedWindowSimplifiedLinearAttention,
)
from normjax.mixers.window import (
    WindowAttention,
    WindowFocusedLinearAttention,
    WindowSimplifiedLinearAttention,
)

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
