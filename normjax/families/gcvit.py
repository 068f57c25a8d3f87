"""GC ViT (Hatamizadeh et al., 2023)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import (
    CONV,
    CORE,
    LINEAR,
    NORM,
    POINTWISE,
    Kind,
    Row,
    block,
)

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, width and heads of the first stage, MLP ratio, drop path
    "xxtiny": ((2, 2, 6, 2), 64, 2, 3.0, 0.2),
    "xtiny": ((3, 4, 6, 5), 64, 2, 3.0, 0.2),
    "tiny": ((3, 4, 19, 5), 64, 2, 3.0, 0.2),
    "tiny2": ((3, 4, 29, 5), 64, 2, 3.0, 0.25),
    "small": ((3, 4, 19, 5), 96, 3, 2.0, 0.3),
    "small2": ((3, 4, 23, 5), 96, 3, 3.0, 0.35),
    "base": ((3, 4, 19, 5), 128, 4, 2.0, 0.5),
    "large": ((3, 4, 19, 5), 192, 6, 2.0, 0.5),
    "large_384": ((3, 4, 19, 5), 192, 6, 2.0, 0.1),
    "large_512": ((3, 4, 19, 5), 192, 6, 2.0, 0.1),
}
_BLOCK = "blocks_{s}_{i}"


def gcvit_mixers(windows: tuple[Any, ...]) -> tuple[Any, ...]:
    """Local and global windows in turn; `windows` are their sizes by stage."""
    fixed = {"name": "window", "shift": 0}, {"name": "global_context"}
    own = {}, {"own_queries": False}
    return tuple(
        tuple({**a, "window_size": size, **b} for a, b in zip(fixed, own, strict=True))
        for size in windows
    )


def _gcvit(size: str) -> Arguments:
    depths, dim, heads, mlp_ratio, _ = _SIZES[size]
    side = int(size.partition("_")[2] or 224)
    small, large = side // 32, side // 16
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": tuple(heads << i for i in range(4)),
        "mlp_ratio": mlp_ratio,
        "norm": layer_norm(1e-5),
        "mixer": gcvit_mixers((small, small, large, small)),
        "stem": "squeezed_stem",
        "merge": "squeezed_reduction",
        "layer_scale": None if dim == 64 else 1e-5,
    }


def _squeezed(ours: str, theirs: str, names: str, squeeze: Kind) -> list[Row]:
    """The rows of a depthwise convolution that weighs its channels."""
    depthwise, first, second, last = names.split()
    return [
        (ours, f"{theirs}.{depthwise}", {"dwc_kernel": ("weight", "depthwise")}),
        (f"{ours}/squeeze", f"{theirs}.{first}", squeeze),
        (f"{ours}/excite", f"{theirs}.{second}", squeeze),
        (f"{ours}/proj", f"{theirs}.{last}", POINTWISE),
    ]


def _layout(
    places: tuple[str, str, str, str, str],
    names: tuple[str, str, str, str, str, str],
    squeeze: Kind,
) -> list[Row]:
    """Rows of a state dict.

    Args:
      places: of the stem's convolution, its reduction, a merge, a block, the queries.
      names: in a reduction, of its convolution and its parts; of the table, in a
        block; of a layer scale, the last norm and the head.
      squeeze: the kind of what weighs channels.
    """
    stem, down, merge, blocks, queries = places
    inside, parts, table, scale, norm, head = names
    scales = {
        f"{branch}_layer_scale/scale": (f"{scale.format(n)}", "same")
        for n, branch in enumerate(("mixer", "mlp"), 1)
    }
    reductions = [
        row
        for ours, theirs in (("stem/down", down), ("merge_{s}", merge))
        for row in (
            (f"{ours}/norm1", f"{theirs}.norm1", NORM),
            *_squeezed(f"{ours}/conv", f"{theirs}.{inside}", parts, squeeze),
            (f"{ours}/reduction", f"{theirs}.reduction", CONV),
            (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        )
    ]
    return [
        ("stem/proj", stem, CONV),
        *reductions,
        *_squeezed("queries_{s}/conv_{i}", queries, parts, squeeze),
        *block(_BLOCK, blocks),
        (f"{_BLOCK}/mixer/kv", f"{blocks}.attn.qkv", LINEAR),
        (f"{_BLOCK}/mixer", f"{blocks}.{table}", CORE),
        (_BLOCK, blocks, scales),
        ("norm", norm, NORM),
        ("head", head, LINEAR),
    ]


_AUTHORS = _layout(
    (
        "patch_embed.proj",
        "patch_embed.conv_down",
        "levels.{last}.downsample",
        "levels.{s}.blocks.{i}",
        "levels.{s}.q_global_gen.to_q_global.{i}.conv",
    ),
    (
        "conv",
        "0 2.fc.0 2.fc.2 3",
        "attn",
        "gamma{}",
        "norm",
        "head",
    ),
    LINEAR,
)
_TIMM = _layout(
    (
        "stem.conv1",
        "stem.down",
        "stages.{s}.downsample",
        "stages.{s}.blocks.{i}",
        "stages.{s}.global_block.blocks.conv{after}",
    ),
    (
        "conv_block",
        "conv_dw se.fc1 se.fc2 conv_pw",
        "attn.rel_pos",
        "ls{}.gamma",
        "stages.3.norm",
        "head.fc",
    ),
    POINTWISE,
)

GCVIT = Family(
    name="gcvit",
    presets={f"gcvit_{size}": _gcvit(size) for size in _SIZES},
    layouts={"gcvit": _AUTHORS, "gcvit_timm": _TIMM},
    anchors=("patch_embed.proj.weight", "stem.conv1.weight"),
    classes=("head.weight", "head.fc.weight"),
    epsilon=1e-5,
    preprocessing={
        "": Preprocessing(),
        "gcvit_large_384": Preprocessing(image_size=384, crop_ratio=1.0),
        "gcvit_large_512": Preprocessing(image_size=512, crop_ratio=1.0),
    },
    figures={
        "gcvit_xxtiny": Figures(11_995_428, 2.121, 79.9),
        "gcvit_xtiny": Figures(19_981_294, 2.913, 82.0),
        "gcvit_tiny": Figures(28_221_974, 4.761, 83.5),
        "gcvit_tiny2": Figures(34_535_654, 6.178, 83.7),
        "gcvit_small": Figures(51_092_173, 8.530, 84.3),
        "gcvit_small2": Figures(68_615_197, 11.538, 84.8),
        "gcvit_base": Figures(90_320_836, 14.816, 85.0),
        "gcvit_large": Figures(202_075_570, 32.555, 85.7),
        "gcvit_large_384": Figures(202_860_610, None, 87.4, "authors, 21k", 384),
        "gcvit_large_512": Figures(203_795_362, None, 87.6, "authors, 21k", 512),
    },
    recipes={size: Recipe(rate) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
