"""Folding: batch-type norms merged into the linear layers next to them.

    folded_model, folded_variables = fusion.fold(model, variables)

gives the same outputs at evaluation with fewer operations; `fusion.plan` says what is
folded where, and what is not and why. `fusion.convert_pre_norm` turns a Pre-LN model
into a Pre-RMSNorm or Pre-CRMSNorm one.
"""

from normjax.fusion.fold import Fold, fold, plan
from normjax.fusion.prenorm import Change, Conversion, convert_pre_norm
from normjax.fusion.rewrite import RewrittenModel

__all__ = [
    "Change",
    "Conversion",
    "Fold",
    "RewrittenModel",
    "convert_pre_norm",
    "fold",
    "plan",
]
