"""OSNet (Zhou et al., 2019), with instance norms: OSNet-IBN and OSNet-AIN (2021)."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing
from normjax.families.layout import CONV, DEPTHWISE, LINEAR, NORM, Kind, Row

_WIDTHS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
_PLAIN, _INSIDE, _BEHIND = "none", "inside", "behind"
_KINDS = {
    "osnet": ((_PLAIN, _PLAIN),) * 3,
    "osnet_ibn": ((_BEHIND, _BEHIND), (_PLAIN, _PLAIN), (_PLAIN, _PLAIN)),
    "osnet_ain": ((_INSIDE, _INSIDE), (_PLAIN, _INSIDE), (_INSIDE, _PLAIN)),
}
_POINTWISE: Kind = {"kernel": ("weight", "pointwise"), "bias": ("bias", "same")}


def _osnet(kind: str, width: str) -> Arguments:
    instance = {"embed_norm": {"name": "instance_norm"}} if kind != "osnet" else {}
    return {
        "name": "osnet",
        "widths": _WIDTHS[width],
        "blocks": _KINDS[kind],
        "norm": {"name": "batch_norm"},
        **instance,
    }


def _unit(ours: str, theirs: str, conv: str = "conv", norm: str = "bn") -> list[Row]:
    return [
        (f"{ours}/conv", f"{theirs}.{conv}", CONV),
        (f"{ours}/norm", f"{theirs}.{norm}", NORM),
    ]


def _light(ours: str, theirs: str) -> list[Row]:
    return [
        (f"{ours}/pointwise", f"{theirs}.conv1", _POINTWISE),
        (f"{ours}/conv", f"{theirs}.conv2", DEPTHWISE),
        (f"{ours}/norm", f"{theirs}.bn", NORM),
    ]


def _gate_rows(block: str, theirs: str) -> list[Row]:
    return [
        (f"{block}/gate/{name}", f"{theirs}.gate.{name}", _POINTWISE)
        for name in ("fc1", "fc2")
    ]


def _layout(stream: Any, transition: str, expand: Any) -> list[Row]:
    """Rows of a state dict.

    Args:
      stream: function of the stream and its layer to their name in a block.
      transition: their name of the one behind stage {after}.
      expand: function of our block and theirs to the rows of its last layer.
    """
    rows = [*_unit("stem/unit", "conv1")]
    for stage in range(3):
        after = stage + 2
        for i in range(2):
            ours, theirs = f"blocks_{stage}_{i}", f"conv{after}.{i}"
            rows += _unit(f"{ours}/reduce", f"{theirs}.conv1")
            rows += _gate_rows(ours, theirs)
            rows += expand(ours, theirs)
            rows += _unit(f"{ours}/shortcut", f"{theirs}.downsample")
            for t in range(4):
                for layer in range(t + 1):
                    name = f"{theirs}.{stream(t, layer)}"
                    rows += _light(f"{ours}/stream_{t}_{layer}", name)
        rows += _unit(f"transition_{stage}", transition.format(after=after))
    return [
        *rows,
        *_unit("last", "conv5"),
        ("fc", "fc.0", LINEAR),
        ("norm", "fc.1", NORM),
        ("head", "classifier", LINEAR),
    ]


def _lettered(stream: int, layer: int) -> str:
    return "conv2" + "abcd"[stream] + (f".{layer}" if stream else "")


def _plain(ours: str, theirs: str) -> list[Row]:
    behind = (f"{ours}/instance_norm", f"{theirs}.IN", NORM)
    return [*_unit(f"{ours}/expand", f"{theirs}.conv3"), behind]


def _inside(kinds: tuple[tuple[str, ...], ...]) -> Any:
    def rows(ours: str, theirs: str) -> list[Row]:
        stage, block = (int(n) for n in ours.split("_")[1:])
        norm = (
            f"{theirs}.IN" if kinds[stage][block] == _INSIDE else f"{theirs}.conv3.bn"
        )
        return [
            (f"{ours}/expand/conv", f"{theirs}.conv3.conv", CONV),
            (f"{ours}/expand/norm", norm, NORM),
        ]

    return rows


OSNET = Family(
    name="osnet",
    presets={f"{k}_{w}": _osnet(k, w) for k in _KINDS for w in _WIDTHS},
    layouts={
        "osnet": _layout(_lettered, "conv{after}.2.0", _plain),
        "osnet_ain": _layout(
            lambda t, i: f"conv2.{t}.layers.{i}",
            "pool{after}.0",
            _inside(_KINDS["osnet_ain"]),
        ),
    },
    anchors=("conv2.0.conv1.conv.weight",),
    stems=("conv1.conv.weight",),
    classes=("classifier.weight",),
    epsilon=1e-5,
    figures={
        "osnet_x0_25": Figures(714_864, 0.0828, image_size=(256, 128)),
        "osnet_x0_5": Figures(1_143_034, 0.2734, image_size=(256, 128)),
        "osnet_ibn_x0_25": Figures(715_120, image_size=(256, 128)),
        "osnet_ain_x0_25": Figures(714_864, 0.0828, image_size=(256, 128)),
    },
    preprocessing={"": Preprocessing(256, 1.0, "bilinear")},
    config="finetune.py:{preset}",
)
