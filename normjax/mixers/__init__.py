"""Token mixers. Every one is called `mixer(x, *, mask=None, train=False) -> y`.

x is [B, L, D] or, for mixers that accept `grid`, [B, H, W, C]; y has its shape. `mask`
is boolean over the positions (True is a token, False is padding). Causal ones take
`decode=True` as well, which continues rows token by token, see `mixers.cache`.
`build("sla", num_heads=3)` gives a factory; `MIXERS` is the table of all of them.

A mixer stands in `sequence/`, `grid/` or `graph/`, in the file of its key or of the
beginning of its key (`window_sla` in window.py); `gated_rela` stands beside `rela`.
What it does it calls in reading order: `steps` make and place queries, keys and values,
`cache` remembers, `cores` mix the positions of maps, all over the pure functions of
`ops`.
"""

import functools
from typing import Any

from normjax.core.laplacian import laplacian_positions
from normjax.core.registry import Spec
from normjax.mixers.base import CORES, MIXERS, RELATIVE_BIASES
from normjax.mixers.graph.graph_transformer import GraphTransformerAttention
from normjax.mixers.grid.aggregated import (
    AggregatedAttention,
    AggregatedMixtureOfHeadAttention,
)
from normjax.mixers.grid.channel import ChannelAttention
from normjax.mixers.grid.cross_shaped_window import (
    CrossShapedWindowAttention,
    CrossShapedWindowFocusedLinearAttention,
    CrossShapedWindowSimplifiedLinearAttention,
)
from normjax.mixers.grid.efficient_modulation import EfficientModulation
from normjax.mixers.grid.factorization import FactorizationAttention
from normjax.mixers.grid.focused_linear import FocusedLinearAttention
from normjax.mixers.grid.forward_cross import ForwardCrossAttention
from normjax.mixers.grid.global_context import (
    GlobalContextAttention,
    GlobalQueries,
)
from normjax.mixers.grid.global_cosine import GlobalCosineAttention
from normjax.mixers.grid.group_mamba import GroupMamba
from normjax.mixers.grid.halo import HaloAttention
from normjax.mixers.grid.identity import IdentityMixer
from normjax.mixers.grid.inception import InceptionMixer
from normjax.mixers.grid.linear_spatial_reduction import (
    LinearSpatialReductionAttention,
)
from normjax.mixers.grid.locally_enhanced import LocallyEnhancedAttention
from normjax.mixers.grid.mix_shift import MixShift
from normjax.mixers.grid.overlapping_spatial_reduction import (
    OverlappingSpatialReductionAttention,
)
from normjax.mixers.grid.pooling import Pooling
from normjax.mixers.grid.raft import RaftMixer
from normjax.mixers.grid.rala import (
    GatedSoftmaxAttention,
    RankAugmentedLinearAttention,
)
from normjax.mixers.grid.self_guided import (
    SelfGuidedAttention,
    SelfGuidedHybridAttention,
)
from normjax.mixers.grid.sla import SimplifiedLinearAttention
from normjax.mixers.grid.spatial_reduction import (
    SpatialReductionAttention,
    SpatialReductionFocusedLinearAttention,
    SpatialReductionSimplifiedLinearAttention,
)
from normjax.mixers.grid.super_token import SuperTokenAttention
from normjax.mixers.grid.ulsam import UltraLightweightSubspaceAttention
from normjax.mixers.grid.vig import BidirectionalGatedLinearAttention
from normjax.mixers.grid.whole_map import WholeMapAttention
from normjax.mixers.grid.window import (
    WindowAttention,
    WindowFocusedLinearAttention,
    WindowSimplifiedLinearAttention,
)
from normjax.mixers.ops import decay, selective_scan
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.graph import flip_signs
from normjax.mixers.ops.linear_attention import linear_attention
from normjax.mixers.ops.monarch import monarch_product
from normjax.mixers.ops.partition import unfolded
from normjax.mixers.sequence.differential import DifferentialAttention
from normjax.mixers.sequence.gated_linear import GatedLinearAttention
from normjax.mixers.sequence.grouped_query import GroupedQueryAttention
from normjax.mixers.sequence.hard import HardAttention
from normjax.mixers.sequence.liger import LigerAttention
from normjax.mixers.sequence.lightning import LightningAttention
from normjax.mixers.sequence.local_attention import LocalAttention
from normjax.mixers.sequence.mixture_of_head import MixtureOfHeadAttention
from normjax.mixers.sequence.monarch import MonarchMixer
from normjax.mixers.sequence.pararnn import ParallelCell, ParaRNN
from normjax.mixers.sequence.pattention import Pattention, PattentionMixer
from normjax.mixers.sequence.prefix_attention import PrefixAttention
from normjax.mixers.sequence.rela import (
    GatedRectifiedLinearAttention,
    RectifiedLinearAttention,
)
from normjax.mixers.sequence.rg_lru import RGLRU, RecurrentBlock
from normjax.mixers.sequence.soft_causal import SoftCausalAttention, soft_mask_rate
from normjax.mixers.sequence.softmax import SoftmaxAttention
from normjax.mixers.sequence.task_convolved import TaskConvolvedAttention
from normjax.mixers.sequence.transnormer import TransNormerAttention

__all__ = [
    "CORES",
    "MIXERS",
    "RELATIVE_BIASES",
    "RGLRU",
    "AggregatedAttention",
    "AggregatedMixtureOfHeadAttention",
    "BidirectionalGatedLinearAttention",
    "ChannelAttention",
    "CrossShapedWindowAttention",
    "CrossShapedWindowFocusedLinearAttention",
    "CrossShapedWindowSimplifiedLinearAttention",
    "DifferentialAttention",
    "EfficientModulation",
    "FactorizationAttention",
    "FocusedLinearAttention",
    "ForwardCrossAttention",
    "GatedLinearAttention",
    "GatedRectifiedLinearAttention",
    "GatedSoftmaxAttention",
    "GlobalContextAttention",
    "GlobalCosineAttention",
    "GlobalQueries",
    "GraphTransformerAttention",
    "GroupMamba",
    "GroupedQueryAttention",
    "HaloAttention",
    "HardAttention",
    "IdentityMixer",
    "InceptionMixer",
    "LigerAttention",
    "LightningAttention",
    "LinearSpatialReductionAttention",
    "LocalAttention",
    "LocallyEnhancedAttention",
    "MixShift",
    "MixtureOfHeadAttention",
    "MonarchMixer",
    "OverlappingSpatialReductionAttention",
    "ParaRNN",
    "ParallelCell",
    "Pattention",
    "PattentionMixer",
    "Pooling",
    "PrefixAttention",
    "RaftMixer",
    "RankAugmentedLinearAttention",
    "RectifiedLinearAttention",
    "RecurrentBlock",
    "SelfGuidedAttention",
    "SelfGuidedHybridAttention",
    "SimplifiedLinearAttention",
    "SoftCausalAttention",
    "SoftmaxAttention",
    "SpatialReductionAttention",
    "SpatialReductionFocusedLinearAttention",
    "SpatialReductionSimplifiedLinearAttention",
    "SuperTokenAttention",
    "TaskConvolvedAttention",
    "TransNormerAttention",
    "UltraLightweightSubspaceAttention",
    "WholeMapAttention",
    "WindowAttention",
    "WindowFocusedLinearAttention",
    "WindowSimplifiedLinearAttention",
    "build",
    "decay",
    "flip_signs",
    "laplacian_positions",
    "linear_attention",
    "monarch_product",
    "selective_scan",
    "soft_mask_rate",
    "softmax_attention",
    "unfolded",
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
