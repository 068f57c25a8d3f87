"""Optimizers: a schedule, a gradient transformation, which parameters take part.

`OPTIMIZERS`, `SCHEDULES` and `TRANSFORMATIONS` are the tables of all of them.
"""

from normjax.core.layer_decay import layer_decay
from normjax.optim import optimizers, schedules
from normjax.optim.base import OPTIMIZERS, SCHEDULES, TRANSFORMATIONS
from normjax.optim.batch_tests import (
    BATCH_TESTS,
    BatchPlan,
    BatchTest,
    Spread,
    grown_batch,
    grown_plan,
    inner_product_test,
    norm_test,
    orthogonality_test,
)
from normjax.optim.build import (
    build,
    learning_rate,
    perturbation,
    roles,
    updates_made,
)
from normjax.optim.groups import Group
from normjax.optim.logistic import logistic_gradient, perceptron_step
from normjax.optim.scaling import (
    WidthFactors,
    batch_scaled_rate,
    mup_groups,
    mup_readout,
    mup_table,
    robust_factors,
    width_factors,
)
from normjax.optim.schedules.shapes import with_tail
from normjax.optim.sharpness import perturbed, sharpness_aware_gradient
from normjax.optim.sparsity import (
    prosparse_factor,
    sparsity_penalty,
)
from normjax.optim.transformations import (
    adaptive_clip,
    clip_by_global_norm,
    component_clip,
    keep_zeros,
    normalize_and_project,
    random_entries,
)

__all__ = [
    "BATCH_TESTS",
    "OPTIMIZERS",
    "SCHEDULES",
    "TRANSFORMATIONS",
    "BatchPlan",
    "BatchTest",
    "Group",
    "Spread",
    "WidthFactors",
    "adaptive_clip",
    "batch_scaled_rate",
    "build",
    "clip_by_global_norm",
    "component_clip",
    "grown_batch",
    "grown_plan",
    "inner_product_test",
    "keep_zeros",
    "layer_decay",
    "learning_rate",
    "logistic_gradient",
    "mup_groups",
    "mup_readout",
    "mup_table",
    "norm_test",
    "normalize_and_project",
    "optimizers",
    "orthogonality_test",
    "perceptron_step",
    "perturbation",
    "perturbed",
    "prosparse_factor",
    "random_entries",
    "robust_factors",
    "roles",
    "schedules",
    "sharpness_aware_gradient",
    "sparsity_penalty",
    "updates_made",
    "width_factors",
    "with_tail",
]
