"""CCT (Hassani et al., 2021): convolutions make the tokens, none is a class token."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, LINEAR, NORM, Row

_SIZES = {
    # layers: width, heads, ratio of the MLP
    2: (128, 2, 1.0),
    4: (128, 2, 1.0),
    6: (256, 4, 2.0),
    7: (256, 4, 2.0),
    14: (384, 6, 3.0),
}
_BLOCK = "blocks_{i}", "classifier.blocks.{i}"


def cct(depth: int, kernel_size: int, layers: int, **other: Any) -> Arguments:
    """A CCT of so many layers behind so many convolutions."""
    dim, num_heads, mlp_ratio = _SIZES[depth]
    stem = {"name": "conv_tokenizer", "kernel_size": kernel_size, "layers": layers}
    return {
        "name": "vit",
        "depth": depth,
        "dim": dim,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "norm": layer_norm(1e-5),
        "mixer": {"name": "softmax", "qkv_bias": False},
        "stem": stem,
        "pool": "sequence",
        "placement": "carried",
        **other,
    }


_SINE = {"positions": "sine"}
_PRESETS = {
    "cct_2_3x2_32": cct(2, 3, 2),
    "cct_2_3x2_32_sine": cct(2, 3, 2, **_SINE),
    "cct_4_3x2_32": cct(4, 3, 2),
    "cct_4_3x2_32_sine": cct(4, 3, 2, **_SINE),
    "cct_6_3x1_32": cct(6, 3, 1),
    "cct_6_3x1_32_sine": cct(6, 3, 1, **_SINE),
    "cct_6_3x2_32": cct(6, 3, 2),
    "cct_6_3x2_32_sine": cct(6, 3, 2, **_SINE),
    "cct_7_3x1_32": cct(7, 3, 1),
    "cct_7_3x1_32_sine": cct(7, 3, 1, **_SINE),
    "cct_7_3x1_32_c100": cct(7, 3, 1),
    "cct_7_3x1_32_sine_c100": cct(7, 3, 1, **_SINE),
    "cct_7_3x2_32": cct(7, 3, 2),
    "cct_7_3x2_32_sine": cct(7, 3, 2, **_SINE),
    "cct_7_7x2_224": cct(7, 7, 2),
    "cct_7_7x2_224_sine": cct(7, 7, 2, **_SINE),
    "cct_14_7x2_224": cct(14, 7, 2),
    "cct_14_7x2_384": cct(14, 7, 2),
    "cct_14_7x2_384_fl": cct(14, 7, 2),
}
"""By name: layers, kernel and number of the convolutions, side of the images."""

_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_FLOWERS = (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698)


def _preprocessing(preset: str) -> Preprocessing:
    size = next(size for size in (32, 224, 384) if f"_{size}" in preset)
    if preset in ("cct_14_7x2_224", "cct_14_7x2_384"):
        return Preprocessing(size, 0.9)
    flowers = size > 32
    mean, std = _CIFAR100 if preset.endswith("c100") else _CIFAR10
    mean, std = _FLOWERS if flowers else (mean, std)
    return Preprocessing(size, 1.0, mean=mean, std=std)


_FIGURES = {
    "cct_2_3x2_32": Figures(283_723, 0.035, image_size=32, num_classes=10),
    "cct_4_3x2_32": Figures(482_123, 0.050, image_size=32, num_classes=10),
    "cct_6_3x1_32": Figures(3_233_803, 1.014, image_size=32, num_classes=10),
    "cct_6_3x2_32": Figures(3_326_923, 0.253, image_size=32, num_classes=10),
    "cct_7_3x1_32": Figures(3_760_139, 1.182, image_size=32, num_classes=10),
    "cct_7_3x1_32_c100": Figures(3_783_269, 1.182, image_size=32, num_classes=100),
    "cct_7_3x2_32": Figures(3_853_259, 0.289, image_size=32, num_classes=10),
    "cct_7_7x2_224": Figures(4_573_735, 1.605, num_classes=102),
    "cct_14_7x2_224": Figures(22_367_273, 5.522, 80.67),
    "cct_14_7x2_384": Figures(22_513_193, 18.580, 82.71, image_size=384),
    "cct_14_7x2_384_fl": Figures(22_167_463, 18.580, image_size=384, num_classes=102),
}


def rows(tokenizer: str, attention: list[Row], pool: str, head: str) -> list[Row]:
    """The layout, with the names that successors have changed.

    Args:
      tokenizer: of a convolution.  attention: of the mixer of `_BLOCK`.
      pool, head: of the pooling of the sequence and of the output layer.
    """
    return [
        ("", "", {"pos_embed": ("classifier.positional_emb", "tokens")}),
        ("stem/conv_{i}", tokenizer, CONV),
        # Named after the places of a post-norm block; the second replaces the stream.
        (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.pre_norm", NORM),
        (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm1", NORM),
        *((f"{_BLOCK[0]}/{o}", f"{_BLOCK[1]}.{t}", kind) for o, t, kind in attention),
        (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.linear1", LINEAR),
        (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.linear2", LINEAR),
        ("norm", "classifier.norm", NORM),
        ("pool/scores", pool, LINEAR),
        ("head", head, LINEAR),
    ]


CCT = Family(
    name="cct",
    presets=_PRESETS,
    layouts={
        "cct": rows(
            "tokenizer.conv_layers.{i}.0",
            [
                ("mixer/qkv", "self_attn.qkv", LINEAR),
                ("mixer/proj", "self_attn.proj", LINEAR),
            ],
            "classifier.attention_pool",
            "classifier.fc",
        )
    },
    anchors=("tokenizer.conv_layers.0.0.weight",),
    classes=("classifier.fc.weight",),
    epsilon=1e-5,
    figures=_FIGURES,
    preprocessing={name: _preprocessing(name) for name in _PRESETS},
    recipes={name.removeprefix("cct_"): Recipe(drop_path=0.1) for name in _PRESETS},
    config="finetune.py:{preset}",
)
