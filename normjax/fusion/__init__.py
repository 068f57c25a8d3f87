"""Folding: batch-type norms and reparameterizations merged into plain layers.

    folded_model, folded_variables = fusion.fold(model, variables)

gives the same outputs at evaluation with fewer operations; `fusion.plan` says what is
folded where, and what is not and why; `fusion.merge` does the reparameterizations
alone. `fusion.convert_pre_norm` turns a Pre-LN model into a Pre-RMSNorm or Pre-CRMSNorm
one.
"""

from normjax.fusion.fold import Fold, fold, plan
from normjax.fusion.merge import merge
from normjax.fusion.prenorm import Change, Conversion, convert_pre_norm
from normjax.fusion.rewrite import RewrittenModel

__all__ = [
    "Change",
    "Conversion",
    "Fold",
    "RewrittenModel",
    "convert_pre_norm",
    "fold",
    "merge",
    "plan",
]
