"""Adapters of recurrences and layers of language models, and of hypernetworks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers, models, norms, reparam
from normjax.mixers import ParallelCell
from tests.golden_adapters import layer_case, registered
from tests.golden_adapters.compare import LAYERS, close
from tests.golden_adapters.run import Case, applied, cast, check, pure
from tests.golden_adapters.translate import (
    flat,
    inside,
    linear,
    of,
    translated,
    transposed,
)


@layer_case("liger_gla", "liger_hgrn2", "liger_gsa")
def liger(data, meta):
    """The output of the whole sequence; the states are those that decoding leaves."""
    kwargs = dict(meta["kwargs"])
    width = kwargs.pop("head_dim") * kwargs["num_attention_heads"]
    names = {
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "rope_theta": "rotary_base",
        "window": "window",
        "pool_size": "num_slots",
    }
    arguments = translated(kwargs, names, {"hidden_size": data["x"].shape[-1]})
    mixer = mixers.build(
        "liger",
        recurrence=meta["variant"].removeprefix("liger_"),
        qkv_features=width,
        qkv_bias="param_q_proj.bias" in data,
        proj_bias="param_o_proj.bias" in data,
        **arguments,
    )()
    layout = {
        **linear("q_proj", "q"),
        "kv/kernel": transposed("k_proj.weight", "v_proj.weight"),
        "kv/bias": flat("k_proj.bias", "v_proj.bias"),
        **linear("o_proj", "proj"),
    }

    def apply(params, x, mask=None):
        y = mixer.apply({"params": params}, x, mask=mask)
        given = {"mask": mask, "decode": True, "mutable": ["cache"]}
        _, left = mixer.apply({"params": params}, x, **given)
        return {"y": y, **{k: left["cache"][k] for k in states if k in left["cache"]}}

    states = {"state": "state", "slot_keys": "state_k", "slot_values": "state_v"}
    outputs = {ours: of(f"aux_{theirs}") for ours, theirs in states.items()}
    return Case(
        pure(apply),
        layout,
        outputs={"y": of("y"), **outputs},
        fixed={"mask": of("mask", to=lambda m: m.astype(bool))},
    )


CELL = {
    "state_kernel": of("A"),
    "peephole_kernel": of("C"),
    "input_kernel": of("B"),
    "bias": of("b"),
}


@registered("pararnn_gru", "pararnn_lstm", by="variant", tolerances=LAYERS)
def pararnn(data, meta, tolerance):
    """The sequential truth by three ways, and the released solver where its steps are
    those of Newton's method: its LSTM takes c' from elsewhere."""
    names = {"state_dim": "features", "num_heads": "num_heads"}
    checked = {"input_dim": data["x"].shape[-1]}
    cell = meta["variant"].removeprefix("pararnn_")
    module = ParallelCell(cell=cell, **translated(meta["kwargs"], names, checked))

    def case(solver, **more):
        ours = module.clone(solver=solver, **more)

        def apply(params, x):
            return ours.apply({"params": params}, x)[0]

        return Case(pure(apply), CELL)

    newton = {k for k in data if "newton" in k}
    truth = {k: v for k, v in data.items() if k not in newton | {"aux_state"}}
    steps = case("newton", iterations=len(data["x"][0]))
    for each in (case("sequential"), case("tolerance"), steps):
        check(each, truth, meta, tolerance)
    states(module, data, tolerance)
    for key in sorted(k for k in newton if k.startswith("y_")):
        iterations = int(key.removeprefix("y_newton"))
        if cell == "gru" or not iterations:
            released(case("newton", iterations=iterations), key, data, meta, tolerance)


def states(module, data, tolerance):
    """[c, h] of an LSTM after every position."""
    if "aux_state" not in data:
        return
    params = {k: data[f"param_{theirs[0]}"] for k, (theirs, _) in CELL.items()}
    params, x = cast((params, data["x"]), tolerance.dtype)
    for length in range(1, x.shape[1] + 1):
        _, last = module.apply({"params": params}, x[:, :length])
        expected = data["aux_state"][:, length - 1]
        close(f"state {length}", last.reshape(len(x), -1), expected, tolerance.value)


def released(case, key, data, meta, tolerance):
    """What the file has of as many iterations as the key says, gradients too."""
    part = {k: v for k, v in data.items() if k == "x" or k.startswith("param_")}
    part |= {"y": data[key]}
    name = key.removeprefix("y_")
    if f"dx_{name}" in data:
        part |= {"dy": data["dy"], "dx": data[f"dx_{name}"]}
        for k, v in data.items():
            if k.startswith(f"dparam_{name}_"):
                part[k.replace(f"{name}_", "")] = v
    else:
        case = dataclasses.replace(case, gradients={})
    check(case, part, meta, tolerance)


@layer_case("pararnn_mixer")
def pararnn_mixer(data, meta):
    names = {"cell": "cell", "num_heads": "num_heads", "conv_kernel": "conv_width"}
    arguments = translated(meta["kwargs"], names, {"dim": data["x"].shape[-1]})
    layout = {
        "branches/kernel": transposed("in_proj.weight"),
        "conv_kernel": of("conv.conv.weight", to=lambda w: w[:, 0].T),
        "conv_bias": flat("conv.conv.bias"),
        **inside("cell", CELL, "rnn_cell."),
        "norm/scale": flat("gate_norm.weight"),
        "proj/kernel": transposed("out_proj.weight"),
    }
    return Case(applied(mixers.build("pararnn", **arguments)()), layout)


@layer_case("axformer_hard")
def axformer_hard(data, meta):
    """`y` is what our output projection gets."""
    names = {
        "num_attention_heads": "num_heads",
        "keep": "keep",
        "pruned_heads": "pruned_heads",
    }
    checked = {"hidden_size": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("hard", proj_bias=False, **arguments)()
    parts = ("query", "key", "value")
    layout = {
        "qkv/kernel": transposed(*(f"{part}.weight" for part in parts)),
        "qkv/bias": flat(*(f"{part}.bias" for part in parts)),
    }
    width, heads = data["param_query.weight"].shape[0], arguments["num_heads"]

    def apply(params, x, mask=None):
        """Values of 1 give the sum of the weights."""
        layers = {**params, "proj": {"kernel": jnp.eye(width, dtype=x.dtype)}}
        qkv = {**params["qkv"], "bias": params["qkv"]["bias"].at[2 * width :].set(1)}
        qkv["kernel"] = qkv["kernel"].at[:, 2 * width :].set(0)
        y, ones = (
            mixer.apply({"params": p}, x, mask=mask)
            for p in (layers, {**layers, "qkv": qkv})
        )
        rows = ones[..., :: width // heads].swapaxes(1, 2)
        return {"y": y} if arguments["pruned_heads"] else {"y": y, "row_sum": rows}

    return Case(
        pure(apply),
        layout,
        outputs={"y": of("y"), "row_sum": of("aux_row_sum")},
        fixed={"mask": of("mask", to=lambda m: m.astype(bool))},
        unused=("aux_row_sum",),  # of pruned heads it says what they would be
    )


@layer_case("snnk_relu")
def snnk_relu(data, meta):
    names = {
        "out": "features",
        "num_rfs": "num_features",
        "constant": "constant",
        "normalize": "normalize",
        "normalization_constant": "scale",
    }
    checked = {"dim": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked)
    if arguments.get("scale") is None:
        arguments["scale"] = 1.0
    layer = models.KernelDense(**arguments)
    # Psi as it starts, of the weight that is replaced.
    first = layer.clone(kernel_init=lambda *_: jnp.asarray(data["init_weight"].T))
    constants = {"directions": jnp.asarray(data["buffer_projection"])}
    given = {"rngs": jax.random.key(0), "mutable": ["params"]}
    _, made = first.apply({"constants": constants}, jnp.asarray(data["x"]), **given)
    start = made["params"]["psi"].T
    close("Psi at the start", start, data["aux_initial_weights"], 1e-6)
    return Case(
        applied(layer),
        {"psi": transposed("weights")},
        {"constants/directions": of("projection")},
        kept=("buffer_{}", "buffer_{}"),
        unused=("init_weight", "aux_initial_weights"),
    )


@layer_case("snnk_adapter")
def snnk_adapter(data, meta):
    names = {
        "num_rfs": "num_features",
        "down_sample": "down",
        "constant": "constant",
    }
    kwargs = dict(meta["kwargs"])
    kwargs["down_sample"] = kwargs.get("down_sample") or None
    norm = norms.build("layer_norm", epsilon=1e-5) if kwargs.pop("ln_before") else None
    checked = {"input_size": data["x"].shape[-1]}
    adapter = models.KernelAdapter(norm=norm, **translated(kwargs, names, checked))
    # Names count what stands before: a norm, or nothing.
    given = [k.removeprefix("param_") for k in data if k.startswith("param_adapter_")]
    (down,) = (k for k in given if k.startswith("adapter_down"))
    layout = {
        "norm/scale": flat("adapter_norm_before.weight"),
        "norm/bias": flat("adapter_norm_before.bias"),
        "down/psi": transposed(down),
    }
    if adapter.down is None:
        (up,) = (k for k in given if k.startswith("adapter_up"))
        layout["factor"] = flat(up)
    else:
        layout |= linear("adapter_up", "up")
    state = {"constants/down/directions": of("projection")}
    return Case(applied(adapter), layout, state, kept=("buffer_{}", "buffer_{}"))


@layer_case("snnk_urf")
def snnk_urf(data, meta):
    """The features, their product and its gradients."""
    names = {"f": "function", "M": "control"}
    checked = {"num_rfs": len(data["xis"]), "dim": data["x"].shape[-1]}
    arguments = translated(meta["kwargs"], names, checked)

    def apply(params, x, weight, bias, directions, frequencies):
        drawn = (directions, frequencies)
        phi, psi = models.universal_features(x, weight, bias, *drawn, **arguments)
        parts = {"phi_real": phi.real, "phi_imag": phi.imag}
        parts |= {"psi_real": psi.real, "psi_imag": psi.imag}
        return {"y": (phi @ psi.T).real, **parts}

    parts = [f"{of_}_{part}" for of_ in ("phi", "psi") for part in ("real", "imag")]
    return Case(
        pure(apply),
        inputs={name: of(name) for name in ("x", "weight", "bias")},
        outputs={"y": of("y"), **{part: of(f"aux_{part}") for part in parts}},
        fixed={
            "directions": of("buffer_projection"),
            "frequencies": of("xis"),
        },
        unused=("aux_exact",),
    )


ENCODINGS = {"cos|sin": "cos_sin", "z|1-z": "complement", None: "none"}


@registered("mip", by="variant", tolerances=LAYERS)
def mip(data, meta, tolerance):
    """All outputs in one array, since the file has the gradients of their sum."""
    kwargs = meta["kwargs"]
    shapes = {name: tuple(shape) for name, shape in kwargs["output_shapes"].items()}
    network = reparam.Hypernetwork(
        shapes, tuple(kwargs["hidden_sizes"]), ENCODINGS[kwargs["encoding"]]
    )
    names, layout, start = sorted(kwargs["input_shapes"]), {}, 0
    for i in range(len(network.hidden)):
        layout |= linear(f"backbone.block{i}_lin", f"hidden_{i}")
    for name, shape in shapes.items():
        rows = slice(start, start := start + int(np.prod(shape)))

        def part(w, rows=rows, shape=shape):
            return w[rows].T.reshape(*w.shape[1:], *shape)

        layout[f"heads/{name}"] = of("backbone.output.weight", to=part)
        layout[f"base/{name}"] = of("backbone.output.bias", to=part)

    def joined(parts):
        return np.concatenate([p.reshape(len(p), -1) for p in parts], -1)

    def apply(params, *inputs):
        made = network.apply({"params": params}, dict(zip(names, inputs, strict=True)))
        parts = [made[name] for name in shapes]
        return jnp.concatenate([p.reshape(len(p), -1) for p in parts], -1)

    rest = {k: v for k, v in data.items() if not k.startswith(("y_", "dy_"))}
    rest |= {k: joined(data[f"{k}_{name}"] for name in shapes) for k in ("y", "dy")}
    inputs = {name: of(f"x_{name}") for name in names}
    check(Case(pure(apply), layout, inputs=inputs), rest, meta, tolerance)
