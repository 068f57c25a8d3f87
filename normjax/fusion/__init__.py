"""Folding: batch-type norms and reparameterizations merged into plain layers.

    folded_model, folded_variables = fusion.fold(model, variables)

gives the same outputs at evaluation with fewer operations; `fusion.plan` says what is
folded where, and what is not and why, `fusion.size_of` what a model holds and computes;
`fusion.merge` does the reparameterizations alone. A `fusion.TunedModel` folds anew in
every call, so that it can train what it folds. `fusion.convert_pre_norm` turns a Pre-LN
model into a Pre-RMSNorm or Pre-CRMSNorm one.
"""

from normjax.fusion.fold import Fold, UnfinishedDecay, fold, plan
from normjax.fusion.merge import merge
from normjax.fusion.prenorm import Change, Conversion, convert_pre_norm
from normjax.fusion.rewrite import RewrittenModel
from normjax.fusion.size import Size, size_of
from normjax.fusion.tune import TunedModel

__all__ = [
    "Change",
    "Conversion",
    "Fold",
    "RewrittenModel",
    "Size",
    "TunedModel",
    "UnfinishedDecay",
    "convert_pre_norm",
    "fold",
    "merge",
    "plan",
    "size_of",
]
