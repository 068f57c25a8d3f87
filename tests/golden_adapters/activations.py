"""Adapters of activations and of feed-forward layers."""

import numpy as np

from normjax import activations
from normjax.models.mlps import MLPS
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied
from tests.golden_adapters.translate import (
    as_grid,
    depthwise,
    flat,
    grid_of,
    linear,
    maps,
    of,
    same,
    scalar,
    translated,
    transposed,
)

DESCRIPTION = {
    *("paper", "repo", "ref_class", "source", "commit", "variant", "case", "seed"),
    *("dtype", "layout", "mode", "param_names", "keys_note"),
    *("rel_err_of_float32_run", "numpy_forward_check_max_abs"),
}
"""What a meta says beside arguments."""


def arguments_of(meta, names=(), checked=()):
    """As `translated`, with arguments at the top of the meta as well."""
    given = {k: v for k, v in meta.items() if k not in DESCRIPTION and k != "kwargs"}
    return translated(given | (meta.get("kwargs") or {}), dict(names), checked)


@layer_case("act_smelu", "act_helu")
def fixed(data, meta):
    name = meta["variant"].removeprefix("act_")
    argument = {"smelu": "beta", "helu": "alpha"}[name]
    arguments = arguments_of(meta, {argument: argument})
    return Case(applied(activations.build(name, **arguments)()))


@layer_case("act_swish_beta", "act_xatlu", "act_xgelu", "act_xsilu")
def one_scalar(data, meta):
    arguments_of(meta)
    if meta["variant"] == "act_swish_beta":
        per_channel = data["param_beta"].ndim > 0
        module = activations.build("swish", per_channel=per_channel)()
        return Case(applied(module), {"beta": of("beta")})
    module = activations.build(meta["variant"].removeprefix("act_"))()
    return Case(applied(module), {"alpha": of("alpha")})


@layer_case("act_prelu")
def prelu(data, meta):
    """The reference has its channels on axis 1."""
    size = data["param_weight"].size
    arguments_of(meta, {"init": "init"}, {"num_parameters": size})
    module = activations.build("prelu", per_channel=size > 1)()
    last = (lambda a: np.moveaxis(a, 1, -1)) if data["x"].ndim > 1 else same
    slope = flat("weight") if size > 1 else scalar("weight")
    return Case(applied(module), {"slope": slope}, **maps(last))


def feed_forward(name, data, gate, value, out):
    module = MLPS.factory(name)(
        hidden=len(data[f"param_{gate}.weight"]),
        activation=activations.build("gelu"),
        keep_size=False,
        features=data["y"].shape[-1],
    )
    layout = {
        "fc1/kernel": transposed(f"{gate}.weight", f"{value}.weight"),
        "fc2/kernel": transposed(f"{out}.weight"),
    }
    return Case(applied(module), layout)


@layer_case(*(f"act_ffn_{k}" for k in ("glu", "bilinear", "reglu", "geglu", "swiglu")))
def glu(data, meta):
    arguments_of(meta)
    name = meta["variant"].removeprefix("act_ffn_")
    return feed_forward(name, data, "w", "v", "w2")


@layer_case("sglu")
def sglu(data, meta):
    arguments_of(meta)
    return feed_forward("sglu", data, "l1", "l2", "l3")


ACTS = {
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "ReLU6": "relu6",
    "Tanh": "tanh",
}


@layer_case("conv_glu")
def conv_glu(data, meta):
    given, width = meta.get("kwargs") or {}, data["x"].shape[-1]
    height, breadth = grid_of(data, meta)
    checked = {"in_features": width, "H": height, "W": breadth}
    checked["act_layer"] = given.get("act_layer")
    if meta["mode"] == "eval":
        checked["drop"] = given.get("drop")
    names = {"hidden_features": "hidden", "out_features": "features"}
    sizes = {k: v for k, v in arguments_of(meta, names, checked).items() if v}
    act = str(given.get("act_layer") or "GELU").rstrip("'>").rpartition(".")[2]
    module = MLPS.factory("conv_glu")(
        **{"hidden": width, "features": width, **sizes},
        activation=activations.build(ACTS[act]),
    )
    layout = {
        **linear("fc1", "fc1"),
        **linear("fc2", "fc2"),
        "dwc_kernel": depthwise("dwconv.dwconv.weight"),
        "dwc_bias": of("dwconv.dwconv.bias"),
    }
    grid = maps(as_grid(height, breadth))
    return Case(applied(module), layout, unused=("H", "W"), **grid)
