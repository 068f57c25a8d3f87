"""Every configuration of a reparameterization that the contracts run."""

from tests.reparam import oracles
from tests.reparam.row import CONV, DENSE, DEPTHWISE, NORM, RMS_NORM, Row

SIGMA = {
    "name": "sigma_reparam",
    "value": oracles.sigma_reparam,
    "start": oracles.gamma,
    "move": oracles.sigma_vectors,
}
STABLE_RANK = {
    "name": "stable_rank_normalization",
    "value": oracles.stable_rank_normalization,
    "move": oracles.stable_rank_vectors,
}
STANDARDIZED = {
    "name": "weight_standardization",
    "value": oracles.weight_standardization,
}

ROWS = [
    Row(**STANDARDIZED),
    Row(**STANDARDIZED, kwargs={"epsilon_inside": True, "epsilon": 0.1}),
    Row(**STANDARDIZED, kwargs={"unbiased": False, "epsilon": 0.1}),
    Row(
        "scaled_weight_standardization",
        oracles.scaled_weight_standardization,
        start=oracles.ones,
    ),
    Row(
        "scaled_weight_standardization",
        oracles.scaled_weight_standardization,
        start=oracles.ones,
        kwargs={"epsilon": 1e3},
    ),
    Row(**SIGMA),
    Row(**SIGMA, kwargs={"gamma_init": "spectral"}, layers=(DENSE,)),
    Row(**STABLE_RANK, kwargs={"rank_ratio": 0.3}),
    Row(**STABLE_RANK, kwargs={"rank_ratio": 0.1, "iterations": 3}, layers=(CONV,)),
    Row(**STABLE_RANK, kwargs={"rank_ratio": 0.95}, layers=(DENSE,)),
    Row(**STABLE_RANK, kwargs={"rank_ratio": 1.0, "keep_scale": True}),
    Row(
        "weight_normalization",
        oracles.weight_normalization,
        start=oracles.lengths,
    ),
    Row(
        "weight_compander",
        oracles.weight_compander,
        start=oracles.sizes,
        kwargs={"amplitude": 0.5, "width": 2.0},
    ),
    Row(
        "scale_and_shift",
        oracles.scale_and_shift,
        start=None,
        layers=(DENSE, CONV, DEPTHWISE, NORM, RMS_NORM),
    ),
    Row(
        "dora",
        oracles.dora,
        start=None,
        move=oracles.direction_lengths,
        kwargs={"rank": 2, "alpha": 3.0},
    ),
    Row("lora", oracles.lora, None, kwargs={"rank": 2, "alpha": 3.0}, layers=(CONV,)),
    Row(
        "mask_lora",
        oracles.mask_lora,
        start=None,
        kwargs={"rank": 2, "alpha": 3.0},
        layers=(DENSE,),
    ),
    Row(
        "lora_prune",
        oracles.lora,
        start=None,
        kwargs={"rank": 2, "alpha": 3.0},
        layers=(DENSE,),
    ),
    Row(
        "scale_lora",
        oracles.scale_lora,
        start=oracles.roots_of_rank,
        kwargs={"rank": 2},
        layers=(DENSE, CONV),
    ),
    Row(
        "singular_values",
        oracles.singular_values,
        start=oracles.no_shift,
        move=oracles.kept_vectors,
        kwargs={"splits": 3},
    ),
]
