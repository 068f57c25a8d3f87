"""WideNet (Xue et al., 2022) in the sizes of the paper."""

from normjax.families.base import Arguments, Family, Figures, Preprocessing, layer_norm

_SIZES = {
    # layers, width, heads, width of an expert, parameters
    "base": (12, 768, 12, 4096, 29_690_600),
    "large": (24, 1024, 16, 4096, 40_941_544),
    "huge": (32, 1280, 16, 5120, 63_341_800),
}
_EPSILON = 1e-6


def _widenet(size: str) -> Arguments:
    depth, dim, heads, hidden, _ = _SIZES[size]
    experts = {"name": "mixture_of_experts", "num_experts": 4, "top_k": 2}
    released = {"spare": 1, "noise": 0.25, "output_activation": True}
    return {
        "name": "widenet",
        "dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden / dim,
        "mlp": {**experts, **released, "capacity_factor": 1.2},
        "activation": {"name": "gelu", "approximate": True},
        "norm": layer_norm(_EPSILON),
    }


WIDENET = Family(
    name="widenet",
    presets={f"widenet_{size}": _widenet(size) for size in _SIZES},
    epsilon=_EPSILON,
    figures={f"widenet_{size}": Figures(row[-1]) for size, row in _SIZES.items()},
    preprocessing={"": Preprocessing()},
    config="finetune.py:{preset}",
)
