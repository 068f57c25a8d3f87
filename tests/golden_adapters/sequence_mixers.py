"""Adapters of the mixers of sequences and of the recurrence beneath them."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers
from normjax.mixers import RGLRU, Pattention, decay
from tests.golden_adapters import layer_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.vision_mixers import translated


def transposed(*references):
    """One or more torch Linear weights as the kernel of one layer of ours."""
    return references, lambda *ws: np.concatenate(ws).T


def stacked(*references):
    """One or more vectors after each other."""
    return references, lambda *bs: np.concatenate([b.reshape(-1) for b in bs])


def compare(data, tolerance, layout, apply, inputs=("x",)):
    """Forward and every gradient of sum(y * dy).

    Args:
      layout: path of our parameter -> (names of the reference's, function of them that
        is linear, so that it acts on gradients as well).
      apply: (params, *inputs) -> y, or (y, state).
      inputs: names of the arrays that have gradients.
    """

    def cast(a):
        return jnp.asarray(a, tolerance.dtype)

    used = {name for names, _ in layout.values() for name in names}
    given = {k.removeprefix("param_") for k in data if k.startswith("param_")}
    assert given == used, given ^ used

    def ours(prefix):
        params: dict = {}
        for path, (names, function) in layout.items():
            *parents, last = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = function(*(data[prefix + name] for name in names))
        return params

    @jax.jit
    def run(params, arrays, dy):
        y, vjp, state = jax.vjp(
            lambda p, a: out if isinstance(out := apply(p, *a), tuple) else (out, ()),
            params,
            arrays,
            has_aux=True,
        )
        return y, state, *vjp(dy)

    arrays = [cast(data[name]) for name in inputs]
    params = jax.tree.map(cast, ours("param_"))
    y, state, dparams, dinputs = run(params, arrays, cast(data["dy"]))
    close("y", y, data["y"], tolerance.value)
    if "aux_state" in data and not isinstance(state, tuple):
        close("state", state, data["aux_state"], tolerance.value)
    for name, d in zip(inputs, dinputs, strict=True):
        close(f"d{name}", d, data[f"d{name}"], tolerance.gradient)
    expected = ours("dparam_")
    sizes = [np.abs(g).max(initial=0.0) for g in jax.tree.leaves(expected)]
    largest = max(sizes, default=0.0)
    for (path, g), d in zip(
        jax.tree_util.tree_leaves_with_path(expected),
        jax.tree.leaves(dparams),
        strict=True,
    ):
        close(jax.tree_util.keystr(path), d, g, tolerance.gradient, largest)


@layer_runner("rela", "gated_rela")
def rela(data, meta, tolerance):
    mask, cross = data.get("mask"), "memory" in data
    causal = mask is not None and mask.shape[-2] > 1
    if causal:
        length = data["x"].shape[1]
        np.testing.assert_array_equal(mask, np.tri(length)[None, None])
    arguments = {"num_heads": meta["heads"], "epsilon": meta["eps"], "causal": causal}
    mixer = mixers.build(meta["variant"], **arguments)()
    maps = {"q": "q", "kv": "kv"} if cross else {"qkv": "qkv"}
    layout = {}
    for ours in maps:
        theirs = [f"{part}_map" for part in ours] if cross else ["qkv_map"]
        layout[f"{ours}/kernel"] = transposed(*(f"{t}.weight" for t in theirs))
        layout[f"{ours}/bias"] = stacked(*(f"{t}.bias" for t in theirs))
    layout |= {
        "norm/scale": stacked("scale"),
        "proj/kernel": transposed("o_map.weight"),
        "proj/bias": stacked("o_map.bias"),
    }
    if meta["variant"] == "gated_rela":
        layout["gate"] = stacked("gate")
    valid = None if causal or mask is None else mask[:, 0, 0].astype(bool)

    def apply(params, x, memory=None):
        return mixer.apply({"params": params}, x, memory=memory, mask=valid)

    compare(data, tolerance, layout, apply, ("x", "memory") if cross else ("x",))


@layer_runner("diff_attention")
def diff_attention(data, meta, tolerance):
    mixer = mixers.build(
        "differential",
        num_heads=meta["heads"],
        layer=meta["depth"],
        causal="causal" in meta["case"],
    )()
    layout = {
        "qkv/kernel": transposed("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "proj/kernel": transposed("out_proj.weight"),
        "norm/scale": stacked("subln.weight"),
        **{f"lambda_{n}": stacked(f"lambda_{n}") for n in ("q1", "k1", "q2", "k2")},
    }
    compare(data, tolerance, layout, lambda p, x: mixer.apply({"params": p}, x))


@layer_runner("moh")
def moh(data, meta, tolerance):
    names = {
        "num_heads": "num_heads",
        "qkv_bias": "qkv_bias",
        "shared_head": "shared_heads",
        "routed_head": "active_heads",
    }
    arguments = translated(
        meta["kwargs"], names, {"dim": data["x"].shape[-1], "qk_norm": False}
    )
    mixer = mixers.build("mixture_of_head", **arguments)()
    gates = {"wg": "routed_gate", "wg_0": "balance", "wg_1": "shared_gate"}
    given = {k for k in gates if f"param_{k}.weight" in data}
    layout = {
        "qkv/kernel": transposed("qkv.weight"),
        "proj/kernel": transposed("proj.weight"),
        "proj/bias": stacked("proj.bias"),
        **{f"{gates[k]}/kernel": transposed(f"{k}.weight") for k in given},
    }
    if arguments["qkv_bias"]:
        layout["qkv/bias"] = stacked("qkv.bias")
    compare(data, tolerance, layout, lambda p, x: mixer.apply({"params": p}, x))


@layer_runner("pattention")
def pattention(data, meta, tolerance):
    names = {
        "output_channels": "features",
        "param_token_num": "num_tokens",
        "norm_activation_type": "scores",
    }
    checked = {"input_channels": data["x"].shape[-1]}
    module = Pattention(**translated(meta["kwargs"], names, checked))
    layout = {
        "key/kernel": transposed("key_param_tokens"),
        "value/kernel": (("value_param_tokens",), np.asarray),
    }
    compare(data, tolerance, layout, lambda p, x: module.apply({"params": p}, x))


KERPLE = {
    "kerple_log": "kerple_log",
    "kerple_power_ap": "kerple_power",
    "kerple_power_wei_ap": "kerple_power_gain",
    "kerple_power_ap_ap": "kerple_power_both",
}


@layer_runner(*KERPLE)
def kerple(data, meta, tolerance):
    make = mixers.RELATIVE_BIASES.factory(KERPLE[meta["variant"]])
    module = make(num_heads=meta["kwargs"]["heads"], param_dtype=tolerance.dtype)
    order = np.tri(*data["x"].shape[-2:])[None, None]
    names = [k.removeprefix("param_") for k in data if k.startswith("param_")]
    layout = {n.replace("wei", "gain"): stacked(n) for n in names}

    def apply(params, x):
        gain, bias = module.apply({"params": params}, *x.shape[-2:])
        x = x if gain is None else gain * x
        return (x if bias is None else x + bias) * order

    compare(data, tolerance, layout, apply)


def heads_first(function):
    """`function` on [B, H, L, K] instead of [B, L, H, K]."""

    def swapped(*arrays):
        y, state = function(*(jnp.swapaxes(a, 1, 2) for a in arrays))
        return jnp.swapaxes(y, 1, 2), state

    return swapped


def every_form(data, tolerance, function, inputs):
    """`function(form)` for each form of the recurrence; in float64 for the usual one,
    with which the others agree (tests of `decay`)."""
    forms = [decay.chunked]
    if tolerance.dtype != "float64":
        forms += [decay.parallel, decay.recurrent, short_blocks]
    for form in forms:
        apply = function(form)
        compare(data, tolerance, {}, lambda p, *a, f=apply: f(*a), inputs)


def short_blocks(*arrays):
    return decay.chunked(*arrays, chunk=4)


@layer_runner("gla_op", "simple_gla_op")
def gla_op(data, meta, tolerance):
    gate = "gk" if "gk" in data else "g"
    inputs = ("q", "k", "v", gate, *(["h0"] if "h0" in data else []))

    def function(form):
        def apply(q, k, v, g, h0=None):
            g = g if g.ndim == 4 else g[..., None]
            return form(q * q.shape[-1] ** -0.5, k, v, g, h0)

        return apply

    every_form(data, tolerance, function, inputs)


@layer_runner("retention_op")
def retention_op(data, meta, tolerance):
    gates = np.log(1 - 2.0 ** (-5 - np.arange(data["q"].shape[1])))

    def function(form):
        return heads_first(
            lambda q, k, v: form(q * q.shape[-1] ** -0.5, k, v, jnp.asarray(gates))
        )

    every_form(data, tolerance, function, ("q", "k", "v"))


@layer_runner("linear_attn_op")
def linear_attn_op(data, meta, tolerance):
    assert "norm" in meta["case"]

    def apply(params, q, k, v):
        scaled = q * q.shape[-1] ** -0.5
        return decay.causal_linear_attention(scaled, k, v, epsilon=1e-10)

    compare(data, tolerance, {}, apply, ("q", "k", "v"))


@layer_runner("lightning_op")
def lightning_op(data, meta, tolerance):
    gates = -data["slope"].reshape(-1)

    def function(form):
        return heads_first(lambda q, k, v: form(q, k, v, jnp.asarray(gates)))

    every_form(data, tolerance, function, ("q", "k", "v"))


@layer_runner("lightning_module")
def lightning_module(data, meta, tolerance):
    names = {"num_heads": "num_heads", "layer_idx": "layer", "num_layers": "num_layers"}
    checked = {"embed_dim": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("lightning", **arguments)()
    layout = {
        "qkv/kernel": transposed("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "proj/kernel": transposed("o_proj.weight"),
        "norm/scale": stacked("norm.weight"),
        "norm/bias": stacked("norm.bias"),
        "gate_down/kernel": transposed("output_gate.0.weight"),
        "gate_up/kernel": transposed("output_gate.1.weight"),
    }
    compare(data, tolerance, layout, lambda p, x: mixer.apply({"params": p}, x))


@layer_runner("transnormer")
def transnormer(data, meta, tolerance):
    mixer = mixers.build(
        "transnormer",
        num_heads=meta["heads"],
        layer=meta["layer_idx"],
        num_layers=meta["num_layers"],
        lrpe="param_lrpe.theta" in data,
    )()
    layout = {
        "qkvu/kernel": transposed("qkvu_proj.weight"),
        "proj/kernel": transposed("out_proj.weight"),
    }
    if mixer.lrpe:
        layout["theta"] = (("lrpe.theta",), lambda t: t[:, 0])
    compare(data, tolerance, layout, lambda p, x: mixer.apply({"params": p}, x))


@layer_runner("gla_layer")
def gla_layer(data, meta, tolerance):
    names = {
        "expand_k": "expand_k",
        "expand_v": "expand_v",
        "num_heads": "num_heads",
        "gate_low_rank_dim": "gate_rank",
    }
    checked = {"mode": meta["kwargs"]["mode"], "hidden_size": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("gated_linear", **arguments)()
    layout = {
        "qk/kernel": transposed("q_proj.weight", "k_proj.weight"),
        "vg/kernel": transposed("v_proj.weight", "g_proj.weight"),
        "log_decay/down/kernel": transposed("gk_proj.0.weight"),
        "log_decay/up/kernel": transposed("gk_proj.1.weight"),
        "log_decay/up/bias": stacked("gk_proj.1.bias"),
        "norm/scale": stacked("g_norm_swish_gate.weight"),
        "proj/kernel": transposed("o_proj.weight"),
    }
    compare(data, tolerance, layout, lambda p, x: mixer.apply({"params": p}, x))


@layer_runner("vig_gla")
def vig_gla(data, meta, tolerance):
    names = {
        "expand_k": "expand_k",
        "num_heads": "num_heads",
        "gate_low_rank_dim": "gate_rank",
        "use_bias_in_dwconv": "conv_bias",
    }
    given = meta["kwargs"]
    checked = {
        "mode": given["mode"],
        "d_model": data["x"].shape[-1],
        "expand_v": 1.0,
        "fuse_norm": False,
    }
    arguments = translated(given, names, checked)
    mixer = mixers.build("vig", **arguments)()
    keys = round(data["x"].shape[-1] * arguments.get("expand_k", 0.5))
    layout = {
        "conv_kernel": (("in_proj.0.weight",), lambda w: w[:, 0].transpose(1, 2, 0)),
        "qk/kernel": (("qkv_proj.weight",), lambda w: w[: 2 * keys].T),
        "v/kernel": (("qkv_proj.weight",), lambda w: w[2 * keys :].T),
        "log_decay/down/kernel": transposed("gk_proj.0.weight"),
        "log_decay/up/kernel": transposed("gk_proj.1.weight"),
        "log_decay/up/bias": stacked("gk_proj.1.bias"),
        "norm/scale": stacked("g_norm.weight"),
        "local_norm/scale": stacked("l_norm.weight"),
        "share/kernel": transposed("g_proj.weight"),
        "share/bias": stacked("g_proj.bias"),
        "proj/kernel": transposed("o_proj.weight"),
    }
    if arguments.get("conv_bias"):
        layout["conv_bias"] = stacked("in_proj.0.bias")

    def apply(params, x):
        y = mixer.apply({"params": params}, x.reshape(len(x), meta["H"], meta["W"], -1))
        return y.reshape(x.shape)

    compare(data, tolerance, layout, apply)


@layer_runner("rala", "rala_softmax")
def rala(data, meta, tolerance):
    checked = {"dim": data["x"].shape[1]}
    arguments = translated(meta["kwargs"], {"num_heads": "num_heads"}, checked)
    mixer = mixers.build(meta["variant"], **arguments)()
    layout = {
        "qkvo/kernel": (("qkvo.weight",), lambda w: w[:, :, 0, 0].T),
        "qkvo/bias": stacked("qkvo.bias"),
        "lepe_kernel": (("lepe.weight",), lambda w: w[:, 0].transpose(1, 2, 0)),
        "lepe_bias": stacked("lepe.bias"),
        "proj/kernel": (("proj.weight",), lambda w: w[:, :, 0, 0].T),
        "proj/bias": stacked("proj.bias"),
    }

    def apply(params, x):
        return jnp.moveaxis(
            mixer.apply({"params": params}, jnp.moveaxis(x, 1, -1)), -1, 1
        )

    compare(data, tolerance, layout, apply)


@layer_runner("rg_lru")
def rg_lru(data, meta, tolerance):
    module = RGLRU(meta["heads"], param_dtype=tolerance.dtype)
    layout = {
        "input_gate_kernel": (("input_gate_w",), np.asarray),
        "input_gate_bias": (("input_gate_b",), np.asarray),
        "recurrence_gate_kernel": (("a_gate_w",), np.asarray),
        "recurrence_gate_bias": (("a_gate_b",), np.asarray),
        "a_param": stacked("a_param"),
    }

    def apply(params, x, state=None):
        positions = jnp.asarray(data["segment_pos"], jnp.int32)
        arguments = {"positions": positions, "state": state}
        return module.apply({"params": params}, x, **arguments)

    compare(data, tolerance, layout, apply, ("x", "h0") if "h0" in data else ("x",))


@layer_runner("griffin_local_mqa")
def griffin_local_mqa(data, meta, tolerance):
    mixer = mixers.build(
        "local_attention", num_heads=meta["heads"], window=meta["window"]
    )()
    layout = {
        "q/kernel": transposed("proj_q.weight"),
        "kv/kernel": transposed("proj_k.weight", "proj_v.weight"),
        "proj/kernel": transposed("proj_final.weight"),
        "proj/bias": stacked("proj_final.bias"),
    }
    positions = jnp.asarray(data["segment_pos"], jnp.int32)

    def apply(params, x):
        return mixer.apply({"params": params}, x, positions=positions)

    compare(data, tolerance, layout, apply)
