"""The vocabulary of layouts: where an array of ours lives in a PyTorch state dict.

A row is (our module, their module, kind): fields in braces match numbers, `next` and
`last` are those beside `s`, `even` and `odd` are 2 s and 2 s - 1, `pair` and `rest` are
i // 2 and i % 2, `after` and `later` are i + 1 and i + 2. A kind is a table of the
arrays of one module: ours -> (theirs, transform), a transform the name of one in
`convert.transforms`, or a tuple of a name and its arguments; or a function of (our
model, stage) to such a table; a pair (NORM, transform) is a norm whose channels have
another order there. Names of several families differ by the rows only.

Sources: the released code of DeiT (Touvron et al., 2021; timm has the same names), Swin
(Liu et al., 2021; timm 1.x under `swin_timm`), PVT (Wang et al., 2021), CSwin (Dong et
al., 2022), FLatten (Han et al., 2023), SLAB (Guo et al., 2024) and LLaMA (Touvron et
al., 2023) as Hugging Face's transformers keeps it; ResNet and MobileNetV2 are those of
torchvision, and of timm where that has other names.
"""

from typing import Any, NamedTuple

Kind = dict[str, tuple[Any, Any]]
Row = tuple[str, str, Any]

LINEAR: Kind = {"kernel": ("weight", "linear"), "bias": ("bias", "same")}
CONV: Kind = {"kernel": ("weight", "conv"), "bias": ("bias", "same")}
POINTWISE: Kind = {"kernel": ("weight", "pointwise"), "bias": ("bias", "same")}
"""A linear layer of ours that is a convolution of 1x1 there."""
DWC: Kind = {
    "dwc_kernel": ("weight", "depthwise"),
    "dwc_bias": ("bias", "same"),
}
"""The depthwise convolution of a module of ours."""
DEPTHWISE: Kind = {"kernel": ("weight", "depthwise")}
Q_KV: Kind = {
    "kernel": (("q.weight", "kv.weight"), "q_kv_weight"),
    "bias": (("q.bias", "kv.bias"), "q_kv_bias"),
}


class Beside(NamedTuple):
    """A kind of modules that have another array beside them.

    Attributes:
      path: of it, in the module that both are in.
      kind: of the arrays.
    """

    path: str
    kind: Any


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


def depthwise(ours: str, theirs: str) -> Kind:
    """The table of a depthwise convolution with bias among the arrays of a module."""
    return {
        f"{ours}_kernel": (f"{theirs}.weight", "depthwise"),
        f"{ours}_bias": (f"{theirs}.bias", "same"),
    }


def conv_merge(ours: str, theirs: str) -> list[Row]:
    """The rows of a convolution and its norm between stages."""
    return [
        (f"{ours}/proj", f"{theirs}.proj", CONV),
        (f"{ours}/norm", f"{theirs}.norm", NORM),
    ]


def depthwise_block(ours: str, theirs: str) -> list[Row]:
    """The rows of a layer around its mixer, with a convolution in the MLP (PVT v2)."""
    return [
        (f"{ours}/norm1", f"{theirs}.norm1", NORM),
        (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        (f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1", LINEAR),
        (f"{ours}/mlp", f"{theirs}.mlp.dwconv.dwconv", DWC),
        (f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2", LINEAR),
    ]


STAGE_NORMS: list[Row] = [("norm_{s}", "norm{next}", NORM), ("norm", "norm4", NORM)]
"""The norms at the end of each of four stages."""
