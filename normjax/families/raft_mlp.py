"""RaftMLP (Tatsunami and Taki, 2021)."""

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import LINEAR, NORM, Row

_DIMS = {
    "s": (64, 128, 256, 512),
    "m": (96, 192, 384, 768),
    "l": (128, 192, 512, 1024),
}
_STRIDES = (4, 2, 2, 2)
_KERNELS = ((4, 8), (2, 4), (2, 4), (2,))
_GRIDS = (56, 28, 14, 7)
"""At 224 pixels, for which the tokens are mixed."""
_RAFTS = 2
_BLOCK = "blocks_{s}_{i}", "levels.{s}.fn.{later}"


def _raft_mlp(size: str) -> Arguments:
    sizes = zip(_STRIDES, _KERNELS, strict=True)
    patches = [
        {"name": "multi_scale_patches", "stride": stride, "kernel_sizes": kernels}
        for stride, kernels in sizes
    ]
    return {
        "name": "pyramid",
        "depths": (2, 2, 6, 2),
        "dims": _DIMS[size],
        "num_heads": (1, 1, 1, 1),
        "norm": layer_norm(1e-5),
        "mixer": {"name": "raft", "raft_size": _RAFTS},
        "branches": tuple({"name": "raft", "grid": (side, side)} for side in _GRIDS),
        "stem": patches[0],
        "merge": tuple(patches[1:]),
    }


def _single() -> Arguments:
    """The network without hierarchy."""
    return {
        "name": "pyramid",
        "depths": (12,),
        "dims": (768,),
        "num_heads": (1,),
        "norm": layer_norm(1e-5),
        "mixer": {"name": "raft", "raft_size": 4},
        "branches": {"name": "raft", "grid": (14, 14)},
        "stem": "patch",
    }


def _axis(axis: str, place: int) -> list[Row]:
    (ours, theirs), order = _BLOCK, ("raft_order", _RAFTS)
    ours, theirs = f"{ours}/tokens/block/{axis}", f"{theirs}.{place}"
    return [
        (f"{ours}_norm", f"{theirs}.norm.1", (NORM, order)),
        (f"{ours}/fc1", f"{theirs}.fn.0", LINEAR),
        (f"{ours}/fc2", f"{theirs}.fn.3", LINEAR),
    ]


RAFT_MLP = Family(
    name="raft_mlp",
    presets={
        **{f"raft_mlp_{size}": _raft_mlp(size) for size in _DIMS},
        "raft_mlp_12": _single(),
    },
    layouts={
        "raft_mlp": [
            ("stem/proj", "levels.0.fn.0.fc", LINEAR),
            ("merge_{s}/proj", "levels.{s}.fn.0.fc", LINEAR),
            *_axis("vertical", 1),
            *_axis("horizontal", 3),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.5.norm", NORM),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.5.fn.0", LINEAR),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.5.fn.3", LINEAR),
            ("norm", "heads.0.1", NORM),
            ("head", "classifier", LINEAR),
        ]
    },
    anchors=("levels.0.fn.0.fc.weight",),
    patches={"levels.0.fn.0.fc.weight": (4**2 + 8**2, 16**2)},
    classes=("classifier.weight",),
    epsilon=1e-5,
    preprocessing={"": Preprocessing(interpolation="bilinear")},
    figures={
        "raft_mlp_s": Figures(9_868_768, 2.087),
        "raft_mlp_m": Figures(21_413_632, 4.267),
        "raft_mlp_l": Figures(36_184_672, 6.544),
        "raft_mlp_12": Figures(58_390_696, 12.024),
    },
    recipes={size: Recipe(0.1) for size in (*_DIMS, "12")},
    config="finetune.py:{preset}",
)
