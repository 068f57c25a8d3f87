"""Adapters of optimizers: trajectories of parameters under given gradients.

`g_<name>` are the gradients by step, `p_<name>` the parameters before the first step
and after each, `state_<name>_<key>` what is kept after the last.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import optim, reparam
from normjax.optim.per_parameter import PerParameterState
from tests.golden_adapters import registered
from tests.golden_adapters.compare import Tolerance, close

TRAJECTORIES = (
    Tolerance("float64", 1e-9, 1e-9),
    Tolerance("float32", 1e-4, 1e-4),
)
optim_runner = partial(registered, by="variant", tolerances=TRAJECTORIES)

KEPT = {
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "momentum": "m",
    "momentum_buffer": "m",
    "second_momentum_buffer": "v",
    "m_norm_t": "norm",
    "v_norm_t": "norm_square",
    "m_max_t": "largest",
    "prev_grad": "previous",
    "v": "direction",
    "exp_avg_v": "m",
    "exp_avg_sq_v": "v",
    "exp_avg_g": "magnitude_m",
    "exp_avg_sq_g": "magnitude_v",
}
"""What the references keep, by its name here."""

RENAMED = {
    "eps": "epsilon",
    "delta": "delta",
    "dampening": "dampening",
    "wd_ratio": "decay_ratio",
    "weight_decay": "weight_decay",
    "nesterov": "nesterov",
    "correct_bias": "correct_bias",
    "etta": "reweight",
    "exp_avg_sq_value": "initial",
    "clipping": "clipping",
    "max_grad_norm": "clip",
    "gamma2": "gamma2",
    "gamma3": "gamma3",
    "eta_min": "anneal_to",
    "subset_size": "subset_size",
    "rank": "rank",
    "scale": "scale",
    "update_proj_gap": "interval",
    "ns_steps": "iterations",
    "initial_accumulator_value": "initial",
}


def arguments_of(kwargs) -> dict:
    """The arguments that mean the same, under the names that they have here."""
    found = {RENAMED[k]: v for k, v in kwargs.items() if k in RENAMED}
    if "betas" in kwargs:
        found["beta1"], found["beta2"] = kwargs["betas"]
    return found


def ours(x: np.ndarray, stacked: bool = False) -> np.ndarray:
    """[out, in] as [in, out], [O, I, kh, kw] as [kh, kw, I, O]."""
    axes = list(range(x.ndim))
    turned = axes[2:] + axes[1::-1] if x.ndim == 4 else axes[::-1]
    return x.transpose([0, 2, 1] if stacked else turned)


def theirs(x: np.ndarray, stacked: bool = False) -> np.ndarray:
    """The other way."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else ours(x, stacked)


def names_of(data) -> list[str]:
    return [key.removeprefix("p_") for key in data if key.startswith("p_")]


def run_trajectory(optimizer, data, meta, tolerance, each=lambda step, state: None):
    """Compare the parameters after every step, and what is kept after the last.

    Args:
      each: called with 0, 1, ... and the state before the first step and after each.
    """
    layouts = meta["layout"] if isinstance(meta["layout"], dict) else {}
    names, stacked = names_of(data), {n for n, v in layouts.items() if "batch" in v}

    def tree(prefix, t):
        arrays = {n: ours(data[f"{prefix}_{n}"][t], n in stacked) for n in names}
        return jax.tree.map(lambda x: jnp.asarray(x, tolerance.dtype), arrays)

    params, update = tree("p", 0), jax.jit(optimizer.update)
    state = optimizer.init(params)
    each(0, state)
    for t in range(len(data[f"g_{names[0]}"])):
        updates, state = update(tree("g", t), state, params)
        params = optax.apply_updates(params, updates)
        each(t + 1, state)
        for name in names:
            found, expected = np.asarray(params[name]), data[f"p_{name}"][t + 1]
            found = theirs(found, name in stacked)
            close(f"{name} after step {t + 1}", found, expected, tolerance.value)
    compare_kept(data, names, stacked, params, state, tolerance)


def compare_kept(data, names, stacked, params, state, tolerance):
    is_kept = lambda part: isinstance(part, PerParameterState)  # noqa: E731
    parts = jax.tree.leaves(state, is_leaf=is_kept)
    kept = next((part.kept for part in parts if is_kept(part)), {})
    keys = "|".join(sorted(KEPT, key=len, reverse=True))
    for key, expected in data.items():
        if not key.startswith("state_"):
            continue
        name = max((n for n in names if key.startswith(f"state_{n}_")), key=len)
        what = re.fullmatch(keys, key.removeprefix(f"state_{name}_"))
        assert what, f"nothing is kept as {key}"
        found = np.asarray(kept[KEPT[what[0]]][name])
        if found.shape == params[name].shape:
            found = theirs(found, name in stacked)
        found = found.reshape(expected.shape)
        close(key, found, expected, tolerance.value * 10)


def regular(kwargs) -> str:
    """A pattern of the parameters that are no matrices."""
    names = kwargs.get("regular_group", {}).get("names", [])
    return "|".join(f"^{re.escape(name)}$" for name in names) or "$^"


@optim_runner("adamp")
def adamp(data, meta, tolerance):
    kwargs = meta["kwargs"]
    optimizer = optim.optimizers.adamp(kwargs["lr"], **arguments_of(kwargs))
    run_trajectory(optimizer, data, meta, tolerance)


@optim_runner("sgdp")
def sgdp(data, meta, tolerance):
    kwargs = meta["kwargs"]
    optimizer = optim.optimizers.sgdp(
        kwargs["lr"],
        **arguments_of(kwargs),
        beta1=kwargs["momentum"],
        project_buffer=not meta["derived"],
    )
    run_trajectory(optimizer, data, meta, tolerance)


@optim_runner("normuon")
def normuon(data, meta, tolerance):
    kwargs, auxiliary = meta["kwargs"], {}
    if "normuon_group" in kwargs:
        adam, kwargs = kwargs["adam_group"], kwargs["normuon_group"]
        assert adam["weight_decay"] == kwargs["weight_decay"]
        auxiliary = {
            "auxiliary_rate": adam["lr"] / kwargs["lr"],
            "exclude": regular({"regular_group": adam}),
            "beta1": adam["betas"][0],
            "beta2": adam["betas"][1],
        }
    paper = kwargs.get("eps") is not None
    given = {k: v for k, v in arguments_of(kwargs).items() if k != "epsilon"}
    layouts = meta["layout"]
    optimizer = optim.optimizers.normuon(
        kwargs["lr"],
        **given,
        **auxiliary,
        momentum=kwargs["momentum"],
        second_momentum=kwargs["beta2"],
        scaling="rms" if paper else "norm",
        conv_as_published=not meta["derived"],
        scanned=tuple(n for n, v in layouts.items() if "batch" in v),
    )
    run_trajectory(optimizer, data, meta, tolerance)


@optim_runner("stablespam")
def stable_spam(data, meta, tolerance):
    kwargs = meta["kwargs"]
    optimizer = optim.optimizers.stable_spam(
        kwargs["lr"],
        **arguments_of(kwargs),
        gamma1=None if kwargs["gamma1"] == -1 else kwargs["gamma1"],
        anneal_steps=kwargs["total_T"] or 0,
        as_published=not meta["derived"],
    )
    run_trajectory(optimizer, data, meta, tolerance)


@optim_runner("subsetnorm", "subspacemomentum")
def subset_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    matrices, given = kwargs["matrix_group"], arguments_of(kwargs)
    given |= arguments_of(matrices)
    if given.get("subset_size") == "heuristics":
        given["subset_size"] = 0
    kinds = {0: "none", 1: "sum"}
    given["second_moment"] = kinds.get(given["beta2"], "ema")
    subsets = kwargs["second_moment_type"] == "sn"
    if kwargs["momentum_type"] == "sm":
        make = optim.optimizers.subspace_momentum
        given |= {"subsets": subsets, "projection": matrices["proj_type"]}
        given["reset_late"] = not meta["derived"]
    else:
        make = optim.optimizers.subset_norm
        given["momentum"] = kwargs["momentum_type"]
    no_matrices = make is optim.optimizers.subset_norm and not subsets
    given["exclude"] = "" if no_matrices else regular(kwargs)
    run_trajectory(make(kwargs["lr"], **given), data, meta, tolerance)


@optim_runner("clipadagrad")
def clipped(data, meta, tolerance):
    kwargs = meta["kwargs"]
    if "initial_b" in kwargs:
        return clipped_norm(data, meta, tolerance)
    given = {**arguments_of(kwargs), "delay": "etta" in kwargs}
    if "betas" in kwargs:
        optimizer = optim.optimizers.clipped_adam(kwargs["lr"], **given)
    else:
        given["as_published"] = not meta["derived"]
        optimizer = optim.optimizers.clipped_adagrad(kwargs["lr"], **given)
    return run_trajectory(optimizer, data, meta, tolerance)


def clipped_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    optimizer = optim.optimizers.clipped_adagrad_norm(
        kwargs["learning_rate"],
        clip=kwargs["clip"],
        initial=kwargs["initial_b"],
        reweight=kwargs["eta"],
        delay=kwargs["delay"],
        weight_decay=0.0,
    )

    def compare_b(t, state):
        close(f"b after {t}", state[0].b, data["b"][t], tolerance.value)

    run_trajectory(optimizer, data, meta, tolerance, compare_b)


@optim_runner("componentclip")
def component_clip(data, meta, tolerance):
    kwargs = meta["kwargs"]
    clip = optim.component_clip(kwargs["max_norm"])
    first = "grad_micro0_"
    names = [key.removeprefix(first) for key in data if key.startswith(first)]
    total = {name: 0.0 for name in names}
    for i in range(kwargs["micro_batches"]):
        arrays = {n: data[f"grad_micro{i}_{n}"] for n in names}
        total = {n: total[n] + jnp.asarray(arrays[n], tolerance.dtype) for n in names}
        total, _ = clip.update(total, clip.init(total))
        for n in names:
            expected = data[f"clipped_micro{i}_{n}"]
            close(f"{n} after {i}", total[n], expected, tolerance.value)


@optim_runner("gradnormlorp")
def gradnormlorp(data, meta, tolerance):
    kwargs = meta["kwargs"]
    if "matrix_group" not in kwargs:
        return dora(data, meta, tolerance)
    given = arguments_of(kwargs) | arguments_of(kwargs["matrix_group"])
    normed = any(key.endswith("_exp_avg_g") for key in data)
    name = "gradnormlorp" if normed else "galore"
    make = getattr(optim.optimizers, name)
    optimizer = make(kwargs["lr"], **given, exclude=regular(kwargs))
    return run_trajectory(optimizer, data, meta, tolerance)


def dora(data, meta, tolerance):
    """A linear layer with low-rank adapters, its units normalised."""
    kwargs = meta["kwargs"]
    typed = {k: jnp.asarray(v, tolerance.dtype) for k, v in data.items()}
    own = {
        "lora_a": ours(typed["param_lora_A"]),
        "lora_b": ours(typed["param_lora_B"]),
        "magnitude": typed["param_magnitude"],
    }
    rule = reparam.Dora(rank=kwargs["r"], alpha=float(kwargs["alpha"]))
    layer = {"kernel": typed["param_weight"].T}

    def forward(x, own):
        made, _ = rule.effective(layer, own, {}, train=True)
        return x @ made["kernel"] + typed["param_bias"][None]

    y, vjp = jax.vjp(forward, typed["x"], own)
    dx, down = vjp(typed["dy"])
    found = {"y": y, "dx": dx, "dparam_lora_A": down["lora_a"].T}
    found |= {"dparam_lora_B": down["lora_b"].T, "dparam_magnitude": down["magnitude"]}
    merged, _ = rule.effective(layer, own, {}, train=False)
    found["weight_merged"] = merged["kernel"].T
    for key, value in found.items():
        close(key, value, data[key], tolerance.gradient)
