"""What happens inside of a network, and what its answers look at.

Functions of arrays and of any Flax model: saliency, dead neurons, singular defects.
What a run writes of its layers while it trains is `normjax.analysis.layers`.
"""

from normjax.analysis.dead_neurons import DeadNeurons, dead_neurons
from normjax.analysis.parameter_changes import parameter_changes
from normjax.analysis.saliency import (
    SmoothGradients,
    activations_and_gradients,
    grad_cam,
    grad_cam_plus_plus,
    normalized_map,
    saliency_picture,
    smooth_grad,
    smooth_grad_cam_plus_plus,
)
from normjax.analysis.singular_defects import (
    DefectDirections,
    NeighborLoss,
    attention_matrix,
    defect_directions,
    mlp_matrix,
    neighbor_loss,
)

__all__ = [
    "DeadNeurons",
    "DefectDirections",
    "NeighborLoss",
    "SmoothGradients",
    "activations_and_gradients",
    "attention_matrix",
    "dead_neurons",
    "defect_directions",
    "grad_cam",
    "grad_cam_plus_plus",
    "mlp_matrix",
    "neighbor_loss",
    "normalized_map",
    "parameter_changes",
    "saliency_picture",
    "smooth_grad",
    "smooth_grad_cam_plus_plus",
]
