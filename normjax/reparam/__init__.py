"""Weight reparameterizations: layers that compute with a function of their weights.

    model = reparam.reparameterize(model, {"pattern": "mlp", "name": "sigma_reparam"})

gives a model that is used as before; `REPARAMS` is the table of all of them, and
`fusion.merge` puts the effective weights into the plain model.
"""

from normjax.reparam.base import REPARAMS, Reparameterization
from normjax.reparam.conv_bn import tuned_conv_bn
from normjax.reparam.dora import Dora
from normjax.reparam.hypernetwork import Hypernetwork
from normjax.reparam.lora import (
    Lora,
    LoraPrune,
    MaskLora,
    ScaleLora,
    alive,
    low_rank,
)
from normjax.reparam.model import Reparameterized, reparameterize
from normjax.reparam.orthogonal_conv import (
    SingularBounds,
    conv_gram,
    conv_singular_values,
    orthogonal_conv_exists,
    orthogonal_conv_loss,
    orthogonal_matrix_norm,
    singular_value_bounds,
)
from normjax.reparam.rules import (
    Effective,
    Rule,
    Site,
    attach,
    effective,
    rules_of,
    sites,
)
from normjax.reparam.scale_and_shift import ScaleAndShift, scale_and_shift
from normjax.reparam.sigma_reparam import SigmaReparam, sigma_reparameterize
from normjax.reparam.singular_values import SingularValues
from normjax.reparam.spectral import iterate_left_right, leading_vectors, spectral_norm
from normjax.reparam.stable_rank_normalization import (
    StableRankNormalization,
    stable_rank_normalize,
)
from normjax.reparam.weight_compander import WeightCompander, compand_weight
from normjax.reparam.weight_normalization import WeightNormalization, weight_normalize
from normjax.reparam.weight_standardization import (
    ScaledWeightStandardization,
    WeightStandardization,
    scaled_standardize_weight,
    standardize_weight,
)

__all__ = [
    "REPARAMS",
    "Dora",
    "Effective",
    "Hypernetwork",
    "Lora",
    "LoraPrune",
    "MaskLora",
    "Reparameterization",
    "Reparameterized",
    "Rule",
    "ScaleAndShift",
    "ScaleLora",
    "ScaledWeightStandardization",
    "SigmaReparam",
    "SingularBounds",
    "SingularValues",
    "Site",
    "StableRankNormalization",
    "WeightCompander",
    "WeightNormalization",
    "WeightStandardization",
    "alive",
    "attach",
    "compand_weight",
    "conv_gram",
    "conv_singular_values",
    "effective",
    "iterate_left_right",
    "leading_vectors",
    "low_rank",
    "orthogonal_conv_exists",
    "orthogonal_conv_loss",
    "orthogonal_matrix_norm",
    "reparameterize",
    "rules_of",
    "scale_and_shift",
    "scaled_standardize_weight",
    "sigma_reparameterize",
    "singular_value_bounds",
    "sites",
    "spectral_norm",
    "stable_rank_normalize",
    "standardize_weight",
    "tuned_conv_bn",
    "weight_normalize",
]
