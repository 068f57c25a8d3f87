"""Adapters of the mixers of sequences and of the recurrence beneath them."""

import jax.numpy as jnp
import numpy as np

from normjax import mixers
from normjax.mixers import RGLRU, Pattention, decay
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied, pure
from tests.golden_adapters.translate import (
    flat,
    linear,
    of,
    same,
    translated,
    transposed,
)

JOINED = transposed("q_proj.weight", "k_proj.weight", "v_proj.weight")


@layer_case("rela", "gated_rela")
def rela(data, meta):
    mask, cross = data.get("mask"), "memory" in data
    causal = mask is not None and mask.shape[-2] > 1
    if causal:
        length = data["x"].shape[1]
        np.testing.assert_array_equal(mask, np.tri(length)[None, None])
    arguments = {"num_heads": meta["heads"], "epsilon": meta["eps"], "causal": causal}
    mixer = mixers.build(meta["variant"], **arguments)()
    layout = {"norm/scale": flat("scale"), **linear("o_map", "proj")}
    if meta["variant"] == "gated_rela":
        layout["gate"] = flat("gate")
    parts = {"q": ["q"], "kv": ["k", "v"]} if cross else {"qkv": ["qkv"]}
    for ours, theirs in parts.items():
        layout[f"{ours}/kernel"] = transposed(*(f"{t}_map.weight" for t in theirs))
        layout[f"{ours}/bias"] = flat(*(f"{t}_map.bias" for t in theirs))

    def apply(params, x, memory=None, mask=None):
        return mixer.apply({"params": params}, x, memory=memory, mask=mask)

    valid = {"mask": of("mask", to=lambda a: a[:, 0, 0].astype(bool))}
    return Case(
        pure(apply),
        layout,
        inputs={"x": of("x"), "memory": of("memory")},
        fixed={} if causal else valid,
        unused=("aux_weights", *(["mask"] if causal else [])),
    )


@layer_case("diff_attention")
def diff_attention(data, meta):
    mixer = mixers.build(
        "differential",
        num_heads=meta["heads"],
        layer=meta["depth"],
        causal="causal" in meta["case"],
    )()
    layout = {
        "qkv/kernel": JOINED,
        **linear("out_proj", "proj"),
        "norm/scale": flat("subln.weight"),
        **{f"lambda_{n}": flat(f"lambda_{n}") for n in ("q1", "k1", "q2", "k2")},
    }
    return Case(applied(mixer), layout)


@layer_case("moh")
def moh(data, meta):
    names = {
        "num_heads": "num_heads",
        "qkv_bias": "qkv_bias",
        "shared_head": "shared_heads",
        "routed_head": "active_heads",
    }
    checked = {"dim": data["x"].shape[-1], "qk_norm": False}
    mixer = mixers.build(
        "mixture_of_head", **translated(meta["kwargs"], names, checked)
    )
    layout = {
        **linear("qkv", "qkv"),
        **linear("proj", "proj"),
        **linear("wg", "routed_gate"),
        **linear("wg_0", "balance"),
        **linear("wg_1", "shared_gate"),
    }
    return Case(applied(mixer()), layout)


@layer_case("pattention")
def pattention(data, meta):
    names = {
        "output_channels": "features",
        "param_token_num": "num_tokens",
        "norm_activation_type": "scores",
    }
    checked = {"input_channels": data["x"].shape[-1]}
    layout = {
        "key/kernel": transposed("key_param_tokens"),
        "value/kernel": of("value_param_tokens"),
    }
    return Case(
        applied(Pattention(**translated(meta["kwargs"], names, checked))), layout
    )


KERPLE = {
    "kerple_log": "kerple_log",
    "kerple_power_ap": "kerple_power",
    "kerple_power_wei_ap": "kerple_power_gain",
    "kerple_power_ap_ap": "kerple_power_both",
}


@layer_case(*KERPLE)
def kerple(data, meta):
    make = mixers.RELATIVE_BIASES.factory(KERPLE[meta["variant"]])
    names = [f"{part}_{letter}" for part in ("bias", "wei") for letter in "pa"]

    def apply(params, x):
        module = make(num_heads=meta["kwargs"]["heads"], param_dtype=x.dtype)
        size = x.shape[-2:]
        gain, bias = module.apply({"params": params}, *size)
        x = x if gain is None else gain * x
        return (x if bias is None else x + bias) * jnp.tri(*size)[None, None]

    return Case(pure(apply), {n.replace("wei", "gain"): flat(n) for n in names})


FORMS = (
    decay.chunked,
    decay.parallel,
    decay.recurrent,
    lambda *arrays: decay.chunked(*arrays, chunk=4),
)
"""The recurrence, in all its forms."""


def recurrences(gate=None, more=None, *, scaled=True, heads_first=False):
    """A case for each form of the recurrence.

    Args:
      gate: logarithms of the decays, if they are no input.
      more: layout of decays and first state, if they are inputs.
      scaled: whether scores are divided by sqrt(K).
      heads_first: whether the arrays are [B, H, L, K], not [B, L, H, K].
    """
    swap = (lambda a: a.swapaxes(1, 2)) if heads_first else same

    def case(form):
        def apply(params, q, k, v, g=gate, state=None):
            q = q * q.shape[-1] ** -0.5 if scaled else q
            y, state = form(q, k, v, g, state)
            return {"y": y, "state": state}

        return Case(
            pure(apply),
            inputs={name: of(name, to=swap) for name in "qkv"} | (more or {}),
            outputs={"y": of("y", to=swap), "state": of("aux_state")},
            unused=("slope",),
        )

    return [case(form) for form in FORMS]


@layer_case("gla_op", "simple_gla_op")
def gla_op(data, meta):
    gate = of("gk") if "gk" in data else of("g", to=lambda g: g[..., None])
    return recurrences(more={"g": gate, "state": of("h0")})


@layer_case("retention_op")
def retention_op(data, meta):
    gates = np.log(1 - 2.0 ** (-5 - np.arange(data["q"].shape[1])))
    return recurrences(jnp.asarray(gates), heads_first=True)


@layer_case("lightning_op")
def lightning_op(data, meta):
    gates = jnp.asarray(-data["slope"].reshape(-1))
    return recurrences(gates, scaled=False, heads_first=True)


@layer_case("linear_attn_op")
def linear_attn_op(data, meta):
    assert "norm" in meta["case"]

    def apply(params, q, k, v):
        scaled = q * q.shape[-1] ** -0.5
        return decay.causal_linear_attention(scaled, k, v, epsilon=1e-10)

    return Case(pure(apply), inputs={name: of(name) for name in "qkv"})


@layer_case("lightning_module")
def lightning_module(data, meta):
    names = {"num_heads": "num_heads", "layer_idx": "layer", "num_layers": "num_layers"}
    checked = {"embed_dim": data["x"].shape[-1]}
    mixer = mixers.build("lightning", **translated(meta["kwargs"], names, checked))()
    layout = {
        "qkv/kernel": JOINED,
        **linear("o_proj", "proj"),
        "norm/scale": flat("norm.weight"),
        "norm/bias": flat("norm.bias"),
        "gate_down/kernel": transposed("output_gate.0.weight"),
        "gate_up/kernel": transposed("output_gate.1.weight"),
    }
    return Case(applied(mixer), layout)


@layer_case("transnormer")
def transnormer(data, meta):
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
        "theta": of("lrpe.theta", to=lambda t: t[:, 0]),
    }
    return Case(applied(mixer), layout)


@layer_case("gla_layer")
def gla_layer(data, meta):
    names = {
        "expand_k": "expand_k",
        "expand_v": "expand_v",
        "num_heads": "num_heads",
        "gate_low_rank_dim": "gate_rank",
    }
    checked = {"mode": meta["kwargs"]["mode"], "hidden_size": data["x"].shape[-1]}
    mixer = mixers.build("gated_linear", **translated(meta["kwargs"], names, checked))()
    layout = {
        "qk/kernel": transposed("q_proj.weight", "k_proj.weight"),
        "vg/kernel": transposed("v_proj.weight", "g_proj.weight"),
        "log_decay/down/kernel": transposed("gk_proj.0.weight"),
        **linear("gk_proj.1", "log_decay/up"),
        "norm/scale": flat("g_norm_swish_gate.weight"),
        **linear("o_proj", "proj"),
    }
    return Case(applied(mixer), layout)


@layer_case("rg_lru")
def rg_lru(data, meta):
    layout = {
        "input_gate_kernel": of("input_gate_w"),
        "input_gate_bias": of("input_gate_b"),
        "recurrence_gate_kernel": of("a_gate_w"),
        "recurrence_gate_bias": of("a_gate_b"),
        "a_param": flat("a_param"),
    }

    def apply(params, x, state=None, *, positions):
        module = RGLRU(meta["heads"], param_dtype=x.dtype)
        given = {"positions": positions, "state": state}
        y, state = module.apply({"params": params}, x, **given)
        return {"y": y, "state": state}

    return Case(
        pure(apply),
        layout,
        inputs={"x": of("x"), "state": of("h0")},
        outputs={"y": of("y"), "state": of("aux_state")},
        fixed={"positions": of("segment_pos")},
    )


@layer_case("griffin_local_mqa")
def griffin_local_mqa(data, meta):
    arguments = {"num_heads": meta["heads"], "window": meta["window"]}
    mixer = mixers.build("local_attention", **arguments)()
    layout = {
        "q/kernel": transposed("proj_q.weight"),
        "kv/kernel": transposed("proj_k.weight", "proj_v.weight"),
        **linear("proj_final", "proj"),
    }
    return Case(applied(mixer), layout, fixed={"positions": of("segment_pos")})
