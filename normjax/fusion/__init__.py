"""Folding: batch-type norms merged into the linear layers next to them.

    folded_model, folded_variables = fusion.fold(model, variables)

gives the same outputs at evaluation with fewer operations; `fusion.plan` says what is
folded where, and what is not and why.
"""

from normjax.fusion.fold import Fold, FoldedModel, fold, plan

__all__ = ["Fold", "FoldedModel", "fold", "plan"]
