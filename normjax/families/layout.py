"""The vocabulary of layouts: where an array of ours lives in a PyTorch state dict.

A row is (our module, their module, kind): fields in braces match numbers, `next` and
`last` are those beside `s`. A kind is a table of the arrays of one module: ours ->
(theirs, transform), a transform the name of one in `convert.transforms`, or a tuple of
a name and its arguments. Names of several families differ by the rows only.

Sources: the released code of DeiT (Touvron et al., 2021; timm has the same names), Swin
(Liu et al., 2021; timm 1.x under `swin_timm`), PVT (Wang et al., 2021), CSwin (Dong et
al., 2022), FLatten (Han et al., 2023), SLAB (Guo et al., 2024) and LLaMA (Touvron et
al., 2023) as Hugging Face's transformers keeps it; ResNet and MobileNetV2 are those of
torchvision, and of timm where that has other names.
"""

from typing import Any

Kind = dict[str, tuple[Any, Any]]
Row = tuple[str, str, Any]

LINEAR: Kind = {"kernel": ("weight", "linear"), "bias": ("bias", "same")}
CONV: Kind = {"kernel": ("weight", "conv"), "bias": ("bias", "same")}
DEPTHWISE: Kind = {"kernel": ("weight", "depthwise")}
Q_KV: Kind = {
    "kernel": (("q.weight", "kv.weight"), "q_kv_weight"),
    "bias": (("q.bias", "kv.bias"), "q_kv_bias"),
}


def joined(*layers: str) -> Kind:
    """The table of one linear layer of ours that they keep as several."""
    names = {k: tuple(f"{layer}.{k}" for layer in layers) for k in ("weight", "bias")}
    return {
        "kernel": (names["weight"], ("joined_weight", len(layers))),
        "bias": (names["bias"], ("joined_bias", len(layers))),
    }


CORE: Kind = {
    "relative_position_bias": ("relative_position_bias_table", "offsets"),
    "positional_encoding": ("positional_encoding", "tokens"),
    "scale": ("scale", "vector"),
    "dwc_kernel": ("dwc.weight", "depthwise"),
    "dwc_bias": ("dwc.bias", "same"),
    "lepe_kernel": ("get_v.weight", "depthwise"),
    "lepe_bias": ("get_v.bias", "same"),
}

LAYER_NORM: Kind = {"scale": ("weight", "same"), "bias": ("bias", "same")}
BATCH_NORM: Kind = {
    **LAYER_NORM,
    "mean": ("running_mean", "same"),
    "var": ("running_var", "same"),
}
REPBN: Kind = {
    "alpha": ("alpha", "same"),
    "scale": ("bn.weight", "same"),
    "bias": ("bn.bias", "same"),
    "mean": ("bn.running_mean", "same"),
    "var": ("bn.running_var", "same"),
}
COUNTERS = ("warm", "iter", "total_step")


def prepbn(warmup_steps: int, decay_steps: int) -> Kind:
    """The table of PRepBN with this schedule."""
    return {
        **{f"layer_norm/{k}": (f"norm1.{n}", f) for k, (n, f) in LAYER_NORM.items()},
        **{f"batch_norm/{k}": (f"norm2.{n}", f) for k, (n, f) in REPBN.items()},
        "step": (COUNTERS, ("schedule", warmup_steps, decay_steps)),
    }


NORM = "norm"
"""The kind of norms, of which each says by its arrays which one it is."""


def block(ours: str, theirs: str, attention: str = "attn.") -> list[Row]:
    """The rows of a transformer's layer."""
    mixer = f"{ours}/mixer"
    return [
        (f"{ours}/norm1", f"{theirs}.norm1", NORM),
        (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        (f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1", LINEAR),
        (f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2", LINEAR),
        (f"{mixer}/qkv", f"{theirs}.{attention}qkv", LINEAR),
        (f"{mixer}/proj", f"{theirs}.{attention}proj", LINEAR),
    ]


END: list[Row] = [("norm", "norm", NORM), ("head", "head", LINEAR)]
"""The rows of the last norm and the output layer."""
