"""Normalizations. Every one is called `norm(x, *, mask=None, train=...) -> y`.

`build("prepbn", decay_steps=9000)` gives a factory (`functools.partial` of a Flax
module); `NORMS` is the table of all of them.
"""

import functools
from typing import Any

from normjax.core.registry import Spec
from normjax.norms.base import NORMS, InferenceAffine
from normjax.norms.batch import BatchNorm, RepBN, batch_normalize
from normjax.norms.layer import LayerNorm, RMSNorm, layer_normalize, rms_normalize
from normjax.norms.none import NoNorm
from normjax.norms.progressive import PRepBN, progressive_weight

__all__ = [
    "NORMS",
    "BatchNorm",
    "InferenceAffine",
    "LayerNorm",
    "NoNorm",
    "PRepBN",
    "RMSNorm",
    "RepBN",
    "batch_normalize",
    "build",
    "layer_normalize",
    "progressive_weight",
    "rms_normalize",
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
