"""Adapters of activations and of feed-forward layers."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import activations
from normjax.models.mlps import MLPS
from tests.golden_adapters import layer_runner
from tests.golden_adapters.compare import close

DESCRIPTION = {
    "paper",
    "repo",
    "ref_class",
    "source",
    "commit",
    "variant",
    "case",
    "seed",
    "dtype",
    "layout",
    "mode",
    "param_names",
    "keys_note",
    "rel_err_of_float32_run",
    "numpy_forward_check_max_abs",
}
"""What a meta says beside arguments."""


def arguments_of(meta, *allowed):
    """Arguments in the meta, at its top or in `kwargs`; fails on others."""
    given = {k: v for k, v in meta.items() if k not in DESCRIPTION and k != "kwargs"}
    given |= meta.get("kwargs") or {}
    assert set(given) <= set(allowed), sorted(set(given) - set(allowed))
    return given


def run(data, tolerance, module, params, layout=(np.asarray, np.asarray)):
    """Forward and every gradient of sum(y * dy).

    Args:
      params: get(reference name) -> array, to the tree of our parameters; linear, as it
        translates the gradients too.
      layout: functions from the reference's layout of x to ours and back.
    """
    to_ours, to_theirs = layout

    def tree(prefix):
        return params(lambda name: data[prefix + name])

    def cast(a):
        return jnp.asarray(a, tolerance.dtype)

    ours = jax.tree.map(cast, tree("param_"))
    given = sum(v.size for k, v in data.items() if k.startswith("param_"))
    assert sum(v.size for v in jax.tree.leaves(ours)) == given

    @jax.jit
    def gradients(params, x, dy):
        y, vjp = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return y, *vjp(dy)

    x, dy = (cast(to_ours(data[k])) for k in ("x", "dy"))
    y, dparams, dx = gradients(ours, x, dy)
    close("y", to_theirs(y), data["y"], tolerance.value)
    close("dx", to_theirs(dx), data["dx"], tolerance.gradient)
    expected = tree("dparam_")
    largest = max((np.abs(g).max() for g in jax.tree.leaves(expected)), default=0)
    assert jax.tree.structure(dparams) == jax.tree.structure(expected)
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected):
        mine = dparams
        for key in path:
            mine = mine[key.key]
        close(jax.tree_util.keystr(path), mine, theirs, tolerance.gradient, largest)


@layer_runner("act_smelu", "act_helu")
def fixed(data, meta, tolerance):
    name = meta["variant"].removeprefix("act_")
    arguments = arguments_of(meta, {"smelu": "beta", "helu": "alpha"}[name])
    run(data, tolerance, activations.build(name, **arguments)(), lambda get: {})


@layer_runner("act_swish_beta", "act_xatlu", "act_xgelu", "act_xsilu")
def one_scalar(data, meta, tolerance):
    arguments_of(meta)
    name = {"act_swish_beta": "swish"}.get(meta["variant"], meta["variant"][4:])
    parameter = "beta" if name == "swish" else "alpha"
    per_channel = {}
    if name == "swish" and data["param_beta"].ndim:
        per_channel = {"per_channel": True}
    module = activations.build(name, **per_channel)()
    run(data, tolerance, module, lambda get: {parameter: get(parameter)})


@layer_runner("act_prelu")
def prelu(data, meta, tolerance):
    """The reference has its channels on axis 1."""
    given = arguments_of(meta, "num_parameters", "init")
    size = data["param_weight"].size
    assert given.get("num_parameters", size) == size
    per_channel = size > 1
    module = activations.build("prelu", per_channel=per_channel)()
    layout = (lambda a: np.moveaxis(a, 1, -1), lambda a: np.moveaxis(a, -1, 1))
    shape = (size,) if per_channel else ()
    slope = lambda get: {"slope": get("weight").reshape(shape)}  # noqa: E731
    run(
        data,
        tolerance,
        module,
        slope,
        layout if data["x"].ndim > 1 else (np.asarray,) * 2,
    )


def feed_forward(name, data, tolerance, gate, value, out):
    def params(get):
        both = [get(f"{part}.weight").T for part in (gate, value)]
        out_kernel = get(f"{out}.weight").T
        return {
            "fc1": {"kernel": np.concatenate(both, 1)},
            "fc2": {"kernel": out_kernel},
        }

    module = MLPS.factory(name)(
        hidden=len(data[f"param_{gate}.weight"]),
        activation=activations.build("gelu"),
        keep_size=False,
        features=data["y"].shape[-1],
    )
    run(data, tolerance, module, params)


@layer_runner(
    *(f"act_ffn_{name}" for name in ("glu", "bilinear", "reglu", "geglu", "swiglu"))
)
def glu(data, meta, tolerance):
    arguments_of(meta)
    name = meta["variant"].removeprefix("act_ffn_")
    feed_forward(name, data, tolerance, "w", "v", "w2")


@layer_runner("sglu")
def sglu(data, meta, tolerance):
    arguments_of(meta)
    feed_forward("sglu", data, tolerance, "l1", "l2", "l3")


ACTS = {
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "ReLU6": "relu6",
    "Tanh": "tanh",
}


@layer_runner("conv_glu")
def conv_glu(data, meta, tolerance):
    names = ("in_features", "hidden_features", "out_features", "act_layer", "drop")
    given = arguments_of(meta, *names, "H", "W")
    assert meta["mode"] == "eval" or not given.get("drop")
    width = data["x"].shape[-1]
    assert given["in_features"] == width
    act = str(given.get("act_layer") or "GELU").rstrip("'>").rpartition(".")[2]
    module = MLPS.factory("conv_glu")(
        hidden=given.get("hidden_features") or width,
        activation=activations.build(ACTS[act]),
        features=given.get("out_features") or width,
    )
    height, breadth = (int(data.get(k, given.get(k, 0))) for k in "HW")
    layout = (
        lambda a: a.reshape(len(a), height, breadth, -1),
        lambda a: np.asarray(a).reshape(len(a), height * breadth, -1),
    )

    def params(get):
        def linear(name):
            return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

        kernel = get("dwconv.dwconv.weight")[:, 0].transpose(1, 2, 0)
        dwc = {"dwc_kernel": kernel, "dwc_bias": get("dwconv.dwconv.bias")}
        return {"fc1": linear("fc1"), "fc2": linear("fc2"), **dwc}

    run(data, tolerance, module, params, layout)
