"""MobileNets (Howard et al., 2017; Sandler et al., 2018), also with ULSAM in places."""

from typing import Any

from normjax.families.base import Family, Figures, Preprocessing
from normjax.families.layout import CONV, DEPTHWISE, LINEAR, NORM, Kind, Row

_STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each; the first block does not expand."""

_SEPARABLE_STAGES = (1, 2, 2, 6, 2)
"""The same of MobileNetV1."""

# So many parameters and multiply-adds are published; which of equal blocks it is, they
# do not say: the last.
_REPLACED = {
    "ulsam_mobilenet_v1": ((3, 5),),
    "ulsam_mobilenet_v2": ((4, 2), (5, 2)),
    "ulsam_mobilenet_v2_96": ((4, 2),),
    "ulsam_mobilenet_v2_160": ((5, 2),),
    "ulsam_mobilenet_v2_160_twice": ((5, 1), (5, 2)),
    "ulsam_mobilenet_v2_twice": ((4, 1), (4, 2), (5, 1), (5, 2)),
}
_GROUPS = 4


def _unit(ours: str, conv: str, norm: str) -> list[Row]:
    kind = DEPTHWISE if ours.endswith("depthwise") else CONV
    return [(f"{ours}/conv", conv, kind), (f"{ours}/norm", norm, NORM)]


def _torchvision() -> list[Row]:
    first, block = "features.1.conv", "features.{next}.conv"
    last = f"features.{sum(_STAGES) + 1}"
    return [
        *_unit("stem/unit", "features.0.0", "features.0.1"),
        *_unit("blocks_0/depthwise", f"{first}.0.0", f"{first}.0.1"),
        *_unit("blocks_0/project", f"{first}.1", f"{first}.2"),
        *_unit("blocks_{s}/expand", f"{block}.0.0", f"{block}.0.1"),
        *_unit("blocks_{s}/depthwise", f"{block}.1.0", f"{block}.1.1"),
        *_unit("blocks_{s}/project", f"{block}.2", f"{block}.3"),
        *_unit("last", f"{last}.0", f"{last}.1"),
        ("head", "classifier.1", LINEAR),
    ]


def _subspaces(model: Any, stage: int) -> Kind:
    """The arrays of ULSAM, which keeps each group of channels on its own."""
    del stage
    groups = getattr(getattr(model, "mixer", None), "keywords", {}).get(
        "num_groups", _GROUPS
    )

    def each(name: str, *shape: int) -> tuple[Any, Any]:
        names = tuple(f"subspaces.{i}.{name}" for i in range(groups))
        return names, ("split", groups, *shape)

    norm = {"scale": "weight", "bias": "bias"}
    norm |= {"mean": "running_mean", "var": "running_var"}
    return {
        "scale": each("conv_dws.weight", -1, 1, 1, 1),
        "shift": each("conv_dws.bias", -1),
        "map_kernel": each("conv_point.weight", 1, -1, 1, 1),
        "map_bias": each("conv_point.bias", -1),
        **{f"norm/{k}": each(f"bn_dws.{v}", -1) for k, v in norm.items()},
        **{f"map_norm/{k}": each(f"bn_point.{v}", -1) for k, v in norm.items()},
    }


def _timm(stages: tuple[int, ...], first: dict[str, str], other: dict[str, str]):
    """Rows with these parts of the first block and of the others: ours -> theirs."""
    rows = [*_unit("stem/unit", "conv_stem", "bn1"), *_unit("last", "conv_head", "bn2")]
    places = [(s, i) for s, count in enumerate(stages) for i in range(count)]
    for number, (s, i) in enumerate(places):
        block = f"blocks.{s}.{i}"
        rows.append((f"blocks_{number}", block, _subspaces))
        for n, (part, conv) in enumerate((other if number else first).items(), 1):
            ours = f"blocks_{number}/{part}"
            rows += _unit(ours, f"{block}.{conv}", f"{block}.bn{n}")
    return [*rows, ("head", "classifier", LINEAR)]


_SEPARABLE = {"depthwise": "conv_dw", "pointwise": "conv_pw"}
_INVERTED = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
_FIRST = {"depthwise": "conv_dw", "project": "conv_pw"}


def _ulsam(preset: str) -> dict[str, Any]:
    host = "mobilenet_v1" if "v1" in preset else "mobilenet_v2"
    mixer = {"name": "ulsam", "num_groups": _GROUPS}
    return {"name": host, "mixer": mixer, "replaced": _REPLACED[preset]}


MOBILENET = Family(
    name="mobilenet",
    presets={
        "mobilenet_v1": {"name": "mobilenet_v1"},
        "mobilenet_v2": {"name": "mobilenet_v2"},
        **{preset: _ulsam(preset) for preset in _REPLACED},
    },
    layouts={
        "mobilenet_torchvision": _torchvision(),
        "mobilenet_timm": _timm(_STAGES, _FIRST, _INVERTED),
        "mobilenet_v1_timm": _timm(_SEPARABLE_STAGES, _SEPARABLE, _SEPARABLE),
    },
    anchors=("features.0.0.weight", "conv_stem.weight"),
    classes=("classifier.1.weight", "classifier.weight"),
    figures={
        "mobilenet_v1": Figures(4_231_976, 0.5687, 70.65),
        "mobilenet_v2": Figures(3_504_872, 0.3008, 71.88, "torchvision"),
        "ulsam_mobilenet_v1": Figures(3_965_748, 0.5167, 70.43),
        "ulsam_mobilenet_v2": Figures(3_067_904, 0.2627, 71.52),
        "ulsam_mobilenet_v2_96": Figures(3_387_092, 0.2781),
        "ulsam_mobilenet_v2_160": Figures(3_185_684, 0.2853),
        "ulsam_mobilenet_v2_160_twice": Figures(2_866_496, 0.2699, 70.74),
        "ulsam_mobilenet_v2_twice": Figures(2_630_936, 0.2245, 69.72),
    },
    preprocessing={"": Preprocessing(interpolation="bilinear")},
    config="finetune.py:{preset}",
)
