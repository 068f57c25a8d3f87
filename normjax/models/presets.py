"""Named models: a model of the registry and its arguments, nothing else."""

from typing import Any

Arguments = dict[str, Any]


def _deit(dim: int, num_heads: int, **other: Any) -> Arguments:
    geometry = {"depth": 12, "dim": dim, "num_heads": num_heads, "mlp_ratio": 4.0}
    return {"name": "vit", **geometry, **other}


def _layer_norm(epsilon: float) -> Arguments:
    return {"name": "layer_norm", "epsilon": epsilon}


def _prepbn(decay_steps: int, epsilon: float) -> Arguments:
    layer_norm = _layer_norm(epsilon)
    return {"name": "prepbn", "decay_steps": decay_steps, "layer_norm": layer_norm}


_SLAB = {"norm": {"name": "prepbn", "decay_steps": 60_000}, "mixer": "sla"}

_SWIN = {
    # depths, width of the first stage, its heads
    "tiny": ((2, 2, 6, 2), 96, 3),
    "small": ((2, 2, 18, 2), 96, 3),
    "base": ((2, 2, 18, 2), 128, 4),
}


def _swin(size: str, linear: str | None = None, **other: Any) -> Arguments:
    depths, dim, heads = _SWIN[size]
    local = {"name": "window", "window_size": 7}
    # The whole map of either stage at 224 pixels.
    whole = {"name": linear, "window_size": 56}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": tuple(heads << i for i in range(4)),
        "norm": _layer_norm(1e-5),
        "mixer": (whole, whole, local, local) if linear else local,
        **other,
    }


_PVT = {
    "tiny": (2, 2, 2, 2),
    "small": (3, 4, 6, 3),
    "medium": (3, 4, 18, 3),
    "large": (3, 8, 27, 3),
}


def _pvt(size: str, linear: str | None = None, **other: Any) -> Arguments:
    ratios = (1, 1, 1, 1) if linear else (8, 4, 2, 1)
    mixer = linear or "spatial_reduction"
    return {
        "name": "pyramid",
        "depths": _PVT[size],
        "dims": (64, 128, 320, 512),
        "num_heads": (1, 2, 5, 8),
        "mlp_ratio": (8.0, 8.0, 4.0, 4.0),
        "norm": _layer_norm(1e-6),
        "embed_norm": _layer_norm(1e-5),
        "mixer": tuple({"name": mixer, "sr_ratio": ratio} for ratio in ratios),
        "merge": {"name": "conv_norm", "kernel_size": 2, "stride": 2},
        "pos_embed": True,
        "placement": "pre_open",
        **other,
    }


def _original_pvt(size: str) -> Arguments:
    """The published model: a class token among the tokens of the last stage."""
    mixers = [*_pvt(size)["mixer"][:3], "softmax"]
    return _pvt(size, mixer=tuple(mixers), pool="cls", placement="pre")


_CSWIN = {
    "tiny": (2, 4, 18, 1),
    "small": (2, 4, 32, 2),
}


def _cswin(size: str, linear: str | None = None, **other: Any) -> Arguments:
    splits, softmax = (1, 2, 7, 7), "cross_shaped_window"
    kinds = (softmax,) * 4
    if linear:
        # The whole map of either stage at 224 pixels.
        splits, kinds = (56, 28, 7, 7), (linear, linear, softmax, softmax)
    stages = zip(kinds, splits, strict=True)
    stem = {"kernel_size": 7, "stride": 4, "padding": 2}
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": _CSWIN[size],
        "dims": (64, 128, 256, 512),
        "num_heads": (2, 4, 8, 16),
        "norm": _layer_norm(1e-5),
        "mixer": tuple({"name": kind, "split_size": size} for kind, size in stages),
        "stem": {"name": "conv_norm", **stem},
        "merge": {"name": "conv_norm", **merge},
        **other,
    }


def _swins(size: str) -> dict[str, Arguments]:
    norm = _prepbn(60_000, 1e-5)
    return {
        f"swin_{size}": _swin(size),
        f"swin_{size}_prepbn": _swin(size, norm=norm),
        f"slab_swin_{size}": _swin(size, "window_sla", norm=norm),
        f"flatten_swin_{size}": _swin(size, "window_focused_linear"),
    }


def _pvts(size: str) -> dict[str, Arguments]:
    norms = {"norm": _prepbn(300_000, 1e-6), "embed_norm": None}
    return {
        f"pvt_{size}": _original_pvt(size),
        f"pvt_{size}_prepbn": _pvt(size, **norms),
        f"slab_pvt_{size}": _pvt(size, "spatial_reduction_sla", **norms),
        f"flatten_pvt_{size}": _pvt(size, "spatial_reduction_focused_linear"),
    }


def _cswins(size: str) -> dict[str, Arguments]:
    norm = _prepbn(120_000, 1e-5)
    linear = "cross_shaped_window_focused_linear"
    return {
        f"cswin_{size}": _cswin(size),
        f"cswin_{size}_prepbn": _cswin(size, norm=norm),
        f"slab_cswin_{size}": _cswin(size, "cross_shaped_window_sla", norm=norm),
        f"flatten_cswin_{size}": _cswin(size, linear),
    }


def _resnet(*depths: int, **other: Any) -> Arguments:
    return {"name": "resnet", "depths": depths, **other}


_RESNETS = {
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, block="bottleneck"),
    # The published networks for 32 pixels have no parameters in their shortcuts.
    "resnet20": _resnet(
        3,
        3,
        3,
        widths=(16, 32, 64),
        stem={"name": "conv_unit", "stride": 1},
        shortcut="pad",
    ),
}


def _llama(dim: int, depth: int, num_heads: int, hidden: int, **other) -> Arguments:
    geometry = {"dim": dim, "depth": depth, "num_heads": num_heads}
    return {
        "name": "decoder",
        **geometry,
        "mlp_hidden": hidden,
        "norm": {"name": "rms_norm", "epsilon": 1e-6},
        **other,
    }


# The layer that replaces starts by giving 0; both count updates (Guo et al., 2024).
_PREPBN_LLAMA = {
    "name": "prepbn",
    "warmup_steps": 10_000,
    "decay_steps": 18_000,
    "layer_norm": {"name": "rms_norm", "epsilon": 1e-6},
    "batch_norm": {
        "name": "repbn",
        "epsilon": 1e-6,
        "alpha_init": 0.0,
        "scale_init": 0.0,
    },
}
_BYTES = 257  # and the end of a document
_LETTERS = 53  # small and capital ones, and the end
_LLAMA_TOKENS = 32_000


PRESETS: dict[str, Arguments] = {
    "deit_tiny": _deit(192, 3, pool="cls"),
    "deit_small": _deit(384, 6, pool="cls"),
    "deit_base": _deit(768, 12, pool="cls"),
    "deit_tiny_prepbn": _deit(192, 3, pool="cls", norm=_prepbn(300_000, 1e-6)),
    "deit_small_prepbn": _deit(384, 6, pool="cls", norm=_prepbn(300_000, 1e-6)),
    "slab_deit_tiny": _deit(192, 3, pool="mean", **_SLAB),
    "slab_deit_small": _deit(384, 6, pool="mean", **_SLAB),
    **{name: preset for size in _SWIN for name, preset in _swins(size).items()},
    **{name: preset for size in _PVT for name, preset in _pvts(size).items()},
    **{name: preset for size in _CSWIN for name, preset in _cswins(size).items()},
    **_RESNETS,
    "lm_tiny": _llama(192, 4, 4, 512, vocab_size=_BYTES),
    "lm_70m": _llama(512, 12, 8, 1368, vocab_size=_LLAMA_TOKENS),
    "lm_130m": _llama(768, 12, 12, 2048, vocab_size=_LLAMA_TOKENS),
    "slab_llama_350m": _llama(
        1024, 18, 8, 4096, vocab_size=_LLAMA_TOKENS, norm=_PREPBN_LLAMA
    ),
    "transduction_tiny": _llama(
        96, 2, 4, 256, name="encoder_decoder", vocab_size=_LETTERS
    ),
    "transnormer_tiny": _llama(
        192,
        4,
        4,
        512,
        vocab_size=_BYTES,
        norm="simple_rms_norm",
        mixer="transnormer",
        mlp="sglu",
    ),
}
