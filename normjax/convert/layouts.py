"""Where each array of a model lives in published PyTorch state dicts, as tables.

A row is (our module, their module, kind): fields in braces match numbers, `next` and
`last` are those beside `s`. A kind is a table of the arrays of one module: ours ->
(theirs, transform). Names of several families differ by the rows only.

Sources: the released code of DeiT (Touvron et al., 2021; timm has the same names), Swin
(Liu et al., 2021; timm 1.x under `swin_timm`), PVT (Wang et al., 2021), CSwin (Dong et
al., 2022), FLatten (Han et al., 2023), SLAB (Guo et al., 2024) and LLaMA (Touvron et
al., 2023) as Hugging Face's transformers keeps it.
"""

from typing import Any

from normjax.convert import transforms as t

Kind = dict[str, tuple[Any, t.Transform]]
Row = tuple[str, str, Any]

LINEAR: Kind = {"kernel": ("weight", t.LINEAR), "bias": ("bias", t.SAME)}
CONV: Kind = {"kernel": ("weight", t.CONV), "bias": ("bias", t.SAME)}
Q_KV: Kind = {
    "kernel": (("q.weight", "kv.weight"), t.Q_KV_WEIGHT),
    "bias": (("q.bias", "kv.bias"), t.Q_KV_BIAS),
}


def joined(*layers: str) -> Kind:
    """The table of one linear layer of ours that they keep as several."""
    names = {k: tuple(f"{layer}.{k}" for layer in layers) for k in ("weight", "bias")}
    return {
        "kernel": (names["weight"], t.joined_weight(len(layers))),
        "bias": (names["bias"], t.joined_bias(len(layers))),
    }


TABLES: Kind = {
    "cls_token": ("cls_token", t.SAME),
    "pos_embed": ("pos_embed", t.TOKENS),
}
CORE: Kind = {
    "relative_position_bias": ("relative_position_bias_table", t.OFFSETS),
    "positional_encoding": ("positional_encoding", t.TOKENS),
    "scale": ("scale", t.VECTOR),
    "dwc_kernel": ("dwc.weight", t.DEPTHWISE),
    "dwc_bias": ("dwc.bias", t.SAME),
    "lepe_kernel": ("get_v.weight", t.DEPTHWISE),
    "lepe_bias": ("get_v.bias", t.SAME),
}

LAYER_NORM: Kind = {"scale": ("weight", t.SAME), "bias": ("bias", t.SAME)}
REPBN: Kind = {
    "alpha": ("alpha", t.SAME),
    "scale": ("bn.weight", t.SAME),
    "bias": ("bn.bias", t.SAME),
    "mean": ("bn.running_mean", t.SAME),
    "var": ("bn.running_var", t.SAME),
}
COUNTERS = ("warm", "iter", "total_step")


def prepbn(warmup_steps: int, decay_steps: int) -> Kind:
    """The table of PRepBN with this schedule."""
    return {
        **{f"layer_norm/{k}": (f"norm1.{n}", f) for k, (n, f) in LAYER_NORM.items()},
        **{f"batch_norm/{k}": (f"norm2.{n}", f) for k, (n, f) in REPBN.items()},
        "step": (COUNTERS, t.schedule(warmup_steps, decay_steps)),
    }


NORM = "norm"
"""The kind of norms, of which each says by its arrays which one it is."""


def _block(ours: str, theirs: str, attention: str = "attn.") -> list[Row]:
    mixer = f"{ours}/mixer"
    return [
        (f"{ours}/norm1", f"{theirs}.norm1", NORM),
        (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        (f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1", LINEAR),
        (f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2", LINEAR),
        (f"{mixer}/qkv", f"{theirs}.{attention}qkv", LINEAR),
        (f"{mixer}/proj", f"{theirs}.{attention}proj", LINEAR),
    ]


_END: list[Row] = [("norm", "norm", NORM), ("head", "head", LINEAR)]
_DEIT = "blocks_{i}", "blocks.{i}"
_SWIN = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_PVT = "blocks_{s}_{i}", "block{next}.{i}"
_CSWIN = "blocks_{s}_{i}", "stage{next}.{i}"


def _swin(downsample: str, head: str) -> list[Row]:
    return [
        ("stem/proj", "patch_embed.proj", CONV),
        ("stem/norm", "patch_embed.norm", NORM),
        *_block(*_SWIN),
        (f"{_SWIN[0]}/mixer", f"{_SWIN[1]}.attn", CORE),
        ("merge_{s}/norm", f"layers.{downsample}.downsample.norm", NORM),
        ("merge_{s}/reduction", f"layers.{downsample}.downsample.reduction", LINEAR),
        ("norm", "norm", NORM),
        ("head", head, LINEAR),
    ]


_PVT_MIXER = f"{_PVT[0]}/mixer", f"{_PVT[1]}.attn"
_CSWIN_MIXER = f"{_CSWIN[0]}/mixer", f"{_CSWIN[1]}.attns"
_LLAMA = "blocks_{i}", "model.layers.{i}"

LAYOUTS: dict[str, list[Row]] = {
    "deit": [
        ("", "", TABLES),
        ("stem/proj", "patch_embed.proj", CONV),
        *_block(*_DEIT),
        (f"{_DEIT[0]}/mixer", f"{_DEIT[1]}.attn", CORE),
        *_END,
    ],
    "swin": _swin("{last}", "head"),
    "swin_timm": _swin("{s}", "head.fc"),
    "pvt": [
        ("", "", {"cls_token": TABLES["cls_token"]}),
        ("", "", {f"pos_embed_{s}": (f"pos_embed{s + 1}", t.TOKENS) for s in range(4)}),
        ("stem/proj", "patch_embed1.proj", CONV),
        ("stem/norm", "patch_embed1.norm", NORM),
        ("merge_{s}/proj", "patch_embed{next}.proj", CONV),
        ("merge_{s}/norm", "patch_embed{next}.norm", NORM),
        (f"{_PVT_MIXER[0]}/q", f"{_PVT_MIXER[1]}.q", LINEAR),
        (f"{_PVT_MIXER[0]}/kv", f"{_PVT_MIXER[1]}.kv", LINEAR),
        (f"{_PVT_MIXER[0]}/qkv", _PVT_MIXER[1], Q_KV),  # before the fused one of blocks
        (f"{_PVT_MIXER[0]}/sr", f"{_PVT_MIXER[1]}.sr", CONV),
        (f"{_PVT_MIXER[0]}/norm", f"{_PVT_MIXER[1]}.norm", NORM),
        *_block(*_PVT),
        (*_PVT_MIXER, CORE),
        *_END,
    ],
    "cswin": [
        ("stem/proj", "stage1_conv_embed.0", CONV),
        ("stem/norm", "stage1_conv_embed.2", NORM),
        ("merge_{s}/proj", "merge{s}.conv", CONV),
        ("merge_{s}/norm", "merge{s}.norm", NORM),
        *_block(*_CSWIN, attention=""),
        (f"{_CSWIN_MIXER[0]}/whole", f"{_CSWIN_MIXER[1]}.0", CORE),
        (f"{_CSWIN_MIXER[0]}/vertical", f"{_CSWIN_MIXER[1]}.0", CORE),
        (f"{_CSWIN_MIXER[0]}/horizontal", f"{_CSWIN_MIXER[1]}.1", CORE),
        *_END,
    ],
    "llama": [
        ("", "model.embed_tokens", {"embed": ("weight", t.SAME)}),
        (f"{_LLAMA[0]}/norm1", f"{_LLAMA[1]}.input_layernorm", NORM),
        (f"{_LLAMA[0]}/norm2", f"{_LLAMA[1]}.post_attention_layernorm", NORM),
        (
            f"{_LLAMA[0]}/mixer/qkv",
            f"{_LLAMA[1]}.self_attn",
            joined("q_proj", "k_proj", "v_proj"),
        ),
        (f"{_LLAMA[0]}/mixer/proj", f"{_LLAMA[1]}.self_attn.o_proj", LINEAR),
        (f"{_LLAMA[0]}/mlp/fc1", f"{_LLAMA[1]}.mlp", joined("gate_proj", "up_proj")),
        (f"{_LLAMA[0]}/mlp/fc2", f"{_LLAMA[1]}.mlp.down_proj", LINEAR),
        ("norm", "model.norm", NORM),
        ("head", "lm_head", LINEAR),
    ],
}

TEXT = ("llama",)
"""Layouts of models that read tokens; those of the others read images."""

STEMS = tuple(
    f"{module}.weight"
    for module in ("patch_embed.proj", "patch_embed1.proj", "stage1_conv_embed.0")
)
"""First convolutions."""

ANCHORS = (*STEMS, "model.embed_tokens.weight")
"""Arrays of which every model has one, whatever stands before its names."""

TIED = {"lm_head.weight": "model.embed_tokens.weight"}
"""Arrays that repeat another one where it serves twice."""

SIZES = {
    "vocab_size": (("model.embed_tokens.weight",), "embed", 0),
    "num_classes": (("head.weight", "head.fc.weight"), "head/kernel", -1),
}
"""Arguments that the data fix of a model: the arrays of theirs that have as many rows,
the parameter of ours and its axis."""
