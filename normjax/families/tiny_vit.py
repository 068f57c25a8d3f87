"""TinyViT (Wu et al., 2022)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, DEPTHWISE, LINEAR, NORM, Kind, Row

_HEAD = 32  # channels of every head
_SIZES: dict[str, tuple[Any, ...]] = {
    # widths, side of the images, drop path
    "5m_224": ((64, 128, 160, 320), 224, 0.0),
    "11m_224": ((64, 128, 256, 448), 224, 0.1),
    "21m_224": ((96, 192, 384, 576), 224, 0.2),
    "21m_384": ((96, 192, 384, 576), 384, 0.1),
    "21m_512": ((96, 192, 384, 576), 512, 0.1),
}


def tiny_vit_mixers(windows: tuple[int, ...]) -> tuple[Arguments, ...]:
    """The mixers of windows of these sizes, by stage; the first stage has none."""
    fixed = {"name": "window", "core": "absolute_offset_softmax", "shift": 0}
    return tuple({**fixed, "window_size": size} for size in windows)


def _tiny_vit(size: str) -> Arguments:
    dims, side, _ = _SIZES[size]
    small, large = side // 32, side // 16
    return {
        "name": "tiny_vit",
        "depths": (2, 2, 6, 2),
        "dims": dims,
        "num_heads": tuple(dim // _HEAD for dim in dims),
        "norm": layer_norm(1e-5),
        "mixer": tiny_vit_mixers((small, small, large, small)),
        "stem": {"name": "conv_stack", "use_bias": False},
    }


def _unit(ours: str, theirs: str, names: str, conv: Kind = CONV) -> list[Row]:
    of_conv, of_norm = names.split()
    return [
        (f"{ours}/conv", f"{theirs}.{of_conv}", conv),
        (f"{ours}/norm", f"{theirs}.{of_norm}", NORM),
    ]


def _inverted(ours: str, theirs: str, names: str) -> list[Row]:
    kinds = {"expand": CONV, "depthwise": DEPTHWISE, "project": CONV}
    return [
        row
        for n, (part, kind) in enumerate(kinds.items(), 1)
        for row in _unit(f"{ours}/{part}", f"{theirs}.conv{n}", names, kind)
    ]


def _qkv(model: Any, stage: int) -> Kind:
    """Queries, keys and values of a head stand together there."""
    parts = model.num_heads[stage], 3
    return {
        "kernel": ("weight", ("by_head", *parts)),
        "bias": ("bias", ("by_head_bias", *parts)),
    }


def _layout(stem: str, blocks: str, merge: str, names: str, end: str) -> list[Row]:
    conv, of_norm = names.split()
    norm, head = end.split()
    attn, ours = f"{blocks}.attn", "blocks_{s}_{i}"
    bias: Kind = {"absolute_position_bias": ("attention_biases", "head_table")}
    stems = [
        row
        for n, theirs in enumerate(stem.split())
        for row in (
            (f"stem/conv_{n}", f"{theirs}.{conv}", CONV),
            (f"stem/norm_{n}", f"{theirs}.{of_norm}", NORM),
        )
    ]
    return [
        *stems,
        *_inverted(f"{ours}/conv", blocks, names),
        *_inverted("merge_{s}/unit", merge, names),
        (f"{ours}/mixer/norm", f"{attn}.norm", NORM),
        (f"{ours}/mixer/window/qkv", f"{attn}.qkv", _qkv),
        (f"{ours}/mixer/window/proj", f"{attn}.proj", LINEAR),
        (f"{ours}/mixer/window", attn, bias),
        *_unit(f"{ours}/local", f"{blocks}.local_conv", names, DEPTHWISE),
        (f"{ours}/norm2", f"{blocks}.mlp.norm", NORM),
        (f"{ours}/mlp/fc1", f"{blocks}.mlp.fc1", LINEAR),
        (f"{ours}/mlp/fc2", f"{blocks}.mlp.fc2", LINEAR),
        ("norm", norm, NORM),
        ("head", head, LINEAR),
    ]


TINY_VIT = Family(
    name="tiny_vit",
    presets={f"tiny_vit_{size}": _tiny_vit(size) for size in _SIZES},
    layouts={
        "tiny_vit": _layout(
            "patch_embed.seq.0 patch_embed.seq.2",
            "layers.{s}.blocks.{i}",
            "layers.{last}.downsample",
            "c bn",
            "norm_head head",
        ),
        "tiny_vit_timm": _layout(
            "patch_embed.conv1 patch_embed.conv2",
            "stages.{s}.blocks.{i}",
            "stages.{s}.downsample",
            "conv bn",
            "head.norm head.fc",
        ),
    },
    anchors=("patch_embed.seq.0.c.weight", "patch_embed.conv1.conv.weight"),
    classes=("head.weight", "head.fc.weight"),
    epsilon=1e-5,
    preprocessing={
        "": Preprocessing(),
        "tiny_vit_21m_384": Preprocessing(image_size=384, crop_ratio=1.0),
        "tiny_vit_21m_512": Preprocessing(image_size=512, crop_ratio=1.0),
    },
    figures={
        "tiny_vit_5m_224": Figures(5_392_764, 1.255, 79.1),
        "tiny_vit_11m_224": Figures(10_996_972, 2.016, 81.5),
        "tiny_vit_21m_224": Figures(21_198_568, 4.250, 83.1),
        "tiny_vit_21m_384": Figures(
            21_230_488, 13.698, 86.2, "authors, 22k distilled", 384
        ),
        "tiny_vit_21m_512": Figures(
            21_268_120, 26.884, 86.5, "authors, 22k distilled", 512
        ),
    },
    recipes={size: Recipe(rate, clip_norm=5.0) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
