"""Normalizations. Every one is called `norm(x, *, mask=None, train=...) -> y`.

`build("prepbn", decay_steps=9000)` gives a factory (`functools.partial` of a Flax
module); `NORMS` is the table of all of them.
"""

import functools
from typing import Any

from normjax.core.registry import Spec
from normjax.norms.adab2n import AdaB2N, task_context, weighted_batch_normalize
from normjax.norms.base import (
    NORMS,
    InferenceAffine,
    includes_activation,
    reads_batch,
)
from normjax.norms.batch_channel_norm import BatchChannelNorm
from normjax.norms.batch_norm import BatchNorm, batch_normalize
from normjax.norms.clamped_batch_norm import ClampedBatchNorm
from normjax.norms.crms_norm import CRMSNorm, crms_normalize
from normjax.norms.evonorm import EvoNormB0, EvoNormS0, evonorm_b0, evonorm_s0
from normjax.norms.filled_batch_norm import FilledBatchNorm
from normjax.norms.ghost_batch_norm import GhostBatchNorm, ghost_batch_normalize
from normjax.norms.group_norm import GroupNorm, group_normalize
from normjax.norms.ibn import IBNa, IBNb
from normjax.norms.instance_norm import InstanceNorm, instance_normalize
from normjax.norms.layer_norm import LayerNorm, layer_normalize
from normjax.norms.none import NoNorm
from normjax.norms.poincare_batch_norm import (
    PoincareBatchNorm,
    poincare_batch_normalize,
)
from normjax.norms.power_norm import PowerNorm, group_scale, power_normalize
from normjax.norms.prepbn import PRepBN, progressive_weight
from normjax.norms.region_norm import LearnableRegionNorm, RegionNorm, region_normalize
from normjax.norms.repbn import RepBN
from normjax.norms.rms_norm import RMSNorm, SimpleRMSNorm, rms_normalize
from normjax.norms.unified_norm import UnifiedNorm, unified_normalize

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

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.build("rms_norm", epsilon=1e-5)
      >>> x = jnp.array([[3.0, 3.0, 1.0, 1.0, 0.0]])  # root mean square 2
      >>> y, variables = norm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[1.5 1.5 0.5 0.5 0.]]
    """
    return NORMS.factory(spec, **arguments)
