"""Normalizations. Every one is called `norm(x, *, mask=None, train=...) -> y`.

`build("prepbn", decay_steps=9000)` gives a factory (`functools.partial` of a Flax
module); `NORMS` is the table of all of them.
"""

import functools
from typing import Any

from normjax.core.registry import Spec
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    includes_activation,
    reads_batch,
)
from normjax.norms.batch import BatchNorm, RepBN, batch_normalize
from normjax.norms.batch_variants import ClampedBatchNorm, FilledBatchNorm
from normjax.norms.channel import (
    BatchChannelNorm,
    GroupNorm,
    IBNa,
    IBNb,
    InstanceNorm,
    group_normalize,
    instance_normalize,
)
from normjax.norms.continual import AdaB2N, task_context, weighted_batch_normalize
from normjax.norms.evonorm import EvoNormB0, EvoNormS0, evonorm_b0, evonorm_s0
from normjax.norms.ghost import GhostBatchNorm, ghost_batch_normalize
from normjax.norms.hyperbolic import PoincareBatchNorm, poincare_batch_normalize
from normjax.norms.layer import (
    CRMSNorm,
    LayerNorm,
    RMSNorm,
    SimpleRMSNorm,
    crms_normalize,
    layer_normalize,
    rms_normalize,
)
from normjax.norms.none import NoNorm
from normjax.norms.power import PowerNorm, group_scale, power_normalize
from normjax.norms.progressive import PRepBN, progressive_weight
from normjax.norms.region import (
    LearnableRegionNorm,
    RegionNorm,
    region_normalize,
)
from normjax.norms.unified import UnifiedNorm, unified_normalize

__all__ = [
    "NORMS",
    "AdaB2N",
    "BatchChannelNorm",
    "BatchNorm",
    "CRMSNorm",
    "ClampedBatchNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilledBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "IBNa",
    "IBNb",
    "InferenceAffine",
    "InstanceNorm",
    "LayerNorm",
    "LearnableRegionNorm",
    "NoNorm",
    "PRepBN",
    "PoincareBatchNorm",
    "PowerNorm",
    "RMSNorm",
    "RegionNorm",
    "RepBN",
    "SimpleRMSNorm",
    "UnifiedNorm",
    "batch_normalize",
    "build",
    "crms_normalize",
    "evonorm_b0",
    "evonorm_s0",
    "ghost_batch_normalize",
    "group_normalize",
    "group_scale",
    "includes_activation",
    "instance_normalize",
    "layer_normalize",
    "poincare_batch_normalize",
    "power_normalize",
    "progressive_weight",
    "reads_batch",
    "region_normalize",
    "rms_normalize",
    "task_context",
    "unified_normalize",
    "weighted_batch_normalize",
]


def build(spec: Spec, **arguments: Any) -> functools.partial:
    """A norm factory: `build("rms_norm", epsilon=1e-5)()` is a Flax module.

    Args:
      spec: registry key, a dict with `name` and arguments, or a ready factory.
      **arguments: arguments of the module where the spec gives none.

    Raises:
      UserError: unknown key or argument; the message lists near matches.
    """
    return NORMS.factory(spec, **arguments)
