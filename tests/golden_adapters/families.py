"""Adapters of the norms over tokens, channels, parts of the batch and regions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.core.dense import ZeroMeanDense
from tests.golden_adapters import norm_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.norms import (
    BN,
    BN_STATE,
    STATS,
    batch_arguments,
    run_steps,
)

FEATURE_MAPS = ("x_", "y_", "dx_", "dy_")


def batch_first(data, meta):
    """The data with [T, B, C] as [B, T, C] and True for real tokens in masks."""
    if meta["layout"]["x"].split() != ["T", "B", "C"]:
        return data
    data = {
        k: v.swapaxes(0, 1) if k.startswith(FEATURE_MAPS) else v
        for k, v in data.items()
    }
    if "True = padding" in meta["layout"].get("mask", ""):
        data = {
            k: ~v.astype(bool) if k.startswith("mask_") else v for k, v in data.items()
        }
    return data


def kernels_last(data):
    """The data with parameters [O, I, H, W] as [H, W, I, O]."""

    def translate(key, v):
        kernel = key.startswith(("param_", "dparam_")) and v.ndim == 4
        return v.transpose(2, 3, 1, 0) if kernel else v

    return {k: translate(k, v) for k, v in data.items()}


def under(path: str, names: dict[str, str], prefix: str) -> dict[str, str]:
    """Names of a submodule's variables: reference prefix -> our path."""
    return {f"{prefix}{k}": f"{path}/{v}" for k, v in names.items()}


@norm_runner("crmsnorm")
def crms_norm(data, meta, tolerance):
    norm = norms.build("crms_norm", epsilon=meta["kwargs"]["eps"])()
    run_steps(data, meta, tolerance, norm, {}, {})


@norm_runner("simplermsnorm")
def simple_rms_norm(data, meta, tolerance):
    norm = norms.build("simple_rms_norm", epsilon=meta["kwargs"]["eps"])()
    run_steps(data, meta, tolerance, norm, {}, {})


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """A layer called as a norm is."""

    layer: nn.Module

    def apply(self, variables, x, *, mask=None, train, mutable=False):
        del mask, train
        return self.layer.apply(variables, x, mutable=mutable)


@norm_runner("zeromeanlinear")
def zero_mean_linear(data, meta, tolerance):
    data = {
        k: v.T if k.endswith("weight") or "_weight_" in k else v
        for k, v in data.items()
    }
    layer = ZeroMeanDense(data["param_weight"].shape[1], use_bias="param_bias" in data)
    names = {"weight": "kernel", "bias": "bias"}
    run_steps(data, meta, tolerance, Unconditional(layer), names, {})


@norm_runner("ghostbn")
def ghost_batch_norm(data, meta, tolerance):
    kwargs, batch = meta["kwargs"], len(data["x_0"])
    norm = norms.build(
        "ghost_batch_norm",
        group_size=-(-batch // kwargs["num_ghosts"]),
        **batch_arguments(kwargs),
    )()
    run_steps(data, meta, tolerance, norm, BN, BN_STATE)


@norm_runner("maskbn")
def clamped_batch_norm(data, meta, tolerance):
    kwargs, data = meta["kwargs"], batch_first(data, meta)
    norm = norms.build(
        "clamped_batch_norm",
        use_running_average=None if kwargs["use_run"] else False,
        **batch_arguments(kwargs),
    )()
    variables = run_steps(data, meta, tolerance, norm, BN, BN_STATE)
    x = jnp.asarray(data["x_eval"], tolerance.dtype)
    mask = data.get("mask_eval")
    _, new = norm.apply(variables, x, mask=mask, train=False, mutable=[STATS])
    for reference, name in BN_STATE.items():
        key = f"state_after_eval_{reference}"
        close(key, new[STATS][name], data[key], tolerance.value)


@norm_runner("masksyncbn")
def filled_batch_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    norm = norms.build(
        "filled_batch_norm",
        token_scaling=kwargs["pre_layer_scaling"],
        **batch_arguments(kwargs),
    )()
    params, state = (under("batch_norm", names, "") for names in (BN, BN_STATE))
    run_steps(batch_first(data, meta), meta, tolerance, norm, params, state)


@norm_runner("maskgroupnorm")
def group_norm(data, meta, tolerance):
    norm = norms.build(
        "group_norm",
        per_token=True,
        num_groups=meta["kwargs"]["groups"],
        epsilon=meta["kwargs"]["eps"],
    )()
    run_steps(batch_first(data, meta), meta, tolerance, norm, BN, {})


@norm_runner("bcn")
def batch_channel_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    estimate = "moving_speed" in kwargs
    norm = norms.build(
        "batch_channel_norm",
        num_groups=kwargs["groups"],
        statistics="estimate" if estimate else "batch",
        **({"epsilon": kwargs["eps"]} if estimate else batch_arguments(kwargs)),
    )()
    prefix = "bn_" if estimate else "pbn_"
    per_group = [f"{d}param_{n}" for d in ("", "d") for n in ("weight", "bias")]
    speed = "bn_estbn_moving_speed"

    def translate(key, v):
        return v.reshape(-1) if key.rstrip("_0123456789") in per_group else v

    data = {
        k: v.reshape(()) if k.endswith(speed) or f"{speed}_" in k else translate(k, v)
        for k, v in data.items()
    }
    params = {**BN, **under("batch_norm", BN, prefix)}
    state = under("batch_norm", BN_STATE, prefix)
    if estimate:
        state[speed] = "batch_norm/speed"
    run_steps(data, meta, tolerance, norm, params, state)


class IBNbBlock(nn.Module):
    """Basic residual block: conv-BN-relu-conv-BN, add, IBN-b, relu."""

    batch: dict
    features: int

    @nn.compact
    def __call__(self, x, *, mask=None, train):
        h = x
        for i in (1, 2):
            h = nn.Conv(
                self.features, (3, 3), padding=1, use_bias=False, name=f"conv{i}"
            )(h)
            h = norms.build("batch_norm", **self.batch)(name=f"bn{i}")(h, train=train)
            h = nn.relu(h) if i == 1 else h
        norm = norms.build("ibn_b", epsilon=self.batch["epsilon"])(name="ibn")
        return nn.relu(norm(x + h))


@norm_runner("ibn")
def ibn(data, meta, tolerance):
    kwargs, batch = meta["kwargs"], batch_arguments(meta["kwargs"])
    if "param_conv1_weight" in data:
        norm = IBNbBlock(batch, data["x_0"].shape[1])
        params = {f"conv{i}_weight": f"conv{i}/kernel" for i in (1, 2)}
        params |= under("ibn", BN, "IN_")
        inner = {"bn1": "bn1_", "bn2": "bn2_"}
        data = kernels_last(data)
    else:
        norm = norms.build("ibn_a", ratio=kwargs["ratio"], **batch)()
        params, inner = under("instance_norm", BN, "IN_"), {"batch_norm": "BN_"}
    state = {}
    for path, prefix in inner.items():
        params |= under(path, BN, prefix)
        state |= under(path, BN_STATE, prefix)
    run_steps(data, meta, tolerance, norm, params, state)


@norm_runner("evonorm")
def evonorm(data, meta, tolerance):
    kwargs, params = meta["kwargs"], {**BN, "v": "v"}
    if "state0_running_var" in data:
        norm = norms.build("evonorm_b0", **batch_arguments(kwargs))()
        run_steps(data, meta, tolerance, norm, params, {"running_var": "var"})
        return
    arguments = {"num_groups": kwargs["groups"], "epsilon": kwargs["eps"]}
    norm = norms.build("evonorm_s0", **arguments)()
    run_steps(data, meta, tolerance, norm, params, {})


@norm_runner("rn")
def region_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    if "param_foreground_gamma" in data:
        norm = norms.build("region_norm", epsilon=kwargs["eps"])()
        names = {
            f"{region}_{reference}": f"{region}_{ours}"
            for region in ("foreground", "background")
            for reference, ours in (("gamma", "scale"), ("beta", "bias"))
        }
        data = {
            k: np.moveaxis(v, 1, -1) if k.startswith("mask_") else v
            for k, v in data.items()
        }
    else:
        norm = norms.build(
            "region_norm_learnable",
            threshold=kwargs["threshold"],
            kernel_size=kwargs["kernel"],
            epsilon=kwargs["eps"],
        )()
        names = {"sa_conv1_weight": "attention/kernel"}
        for reference, ours in (("gamma", "scale"), ("beta", "bias")):
            names[f"sa_{reference}_conv_weight"] = f"{ours}/kernel"
            names[f"sa_{reference}_conv_bias"] = f"{ours}/bias"
        data = kernels_last(data)
    run_steps(data, meta, tolerance, norm, names, {})


@norm_runner("poincarebn")
def poincare_batch_norm(data, meta, tolerance):
    kwargs, raw = meta["kwargs"], "ball_isp_c"
    learned = any(np.any(data[k]) for k in data if k.startswith(f"dparam_{raw}_"))
    norm = norms.build(
        "poincare_batch_norm",
        curvature=kwargs["effective_c"],
        learn_curvature=learned,
        epsilon=kwargs["var_eps"],
        margin=kwargs["project_eps"],
    )()
    names = {"norm_mean": "mean", "norm_var": "variance"}
    if learned:
        names[raw] = "raw_curvature"
    else:
        data = {k: v for k, v in data.items() if k != f"param_{raw}"}
    run_steps(data, meta, tolerance, norm, names, {})


@norm_runner("adab2n")
def adab2n(data, meta, tolerance):
    """As `run_steps`, with task numbers and the gradients of the sown loss."""
    kwargs = meta["kwargs"]
    norm = norms.build(
        "adab2n",
        num_tasks=kwargs["num_tasks"],
        kappa=kwargs["kappa"],
        momentum=1 - kwargs["momentum"],
        epsilon=kwargs["eps"],
    )()
    names = {**BN, "task_weight": "task_weight"}

    def array(key):
        v = data[key]
        return jnp.asarray(np.moveaxis(v, 1, -1) if v.ndim == 4 else v, tolerance.dtype)

    params = {ours: array(f"param_{name}") for name, ours in names.items()}
    stats = norm.init(jax.random.key(0), array("x_0"), train=True)[STATS]
    stats = {
        **jax.tree.map(lambda a: jnp.asarray(a, tolerance.dtype), stats),
        **{ours: array(f"state0_{name}") for name, ours in BN_STATE.items()},
        "task": jnp.int32(data["state0_cur_tasks"]),
    }
    if data["state0_num_batches_tracked"]:
        # 1 / eta after that many batches.
        decay, rate = norm.momentum**norm.kappa, stats["inverse_rate"]
        for _ in range(int(data["state0_num_batches_tracked"])):
            rate = 1 + decay * rate
        stats["inverse_rate"] = rate

    @jax.jit
    def step(params, stats, x, dy, task_ids):
        def forward(params, x):
            y, new = norm.apply(
                {"params": params, STATS: stats},
                x,
                train=True,
                task_ids=task_ids,
                mutable=[STATS, "losses"],
            )
            return (y, new["losses"]["adab2n"][0]), new[STATS]

        (y, loss), vjp, stats_after = jax.vjp(forward, params, x, has_aux=True)
        gradients = [
            vjp((dy, jnp.zeros_like(loss))),
            vjp((jnp.zeros_like(y), jnp.ones_like(loss))),
        ]
        return y, loss, gradients, stats_after

    for t in range(meta["steps"]):
        ids = data.get(f"task_id_{t}")
        y, loss, gradients, stats = step(
            params, stats, array(f"x_{t}"), array(f"dy_{t}"), ids
        )
        close(f"y_{t}", y, array(f"y_{t}"), tolerance.value)
        size = np.square(data[f"state_running_var_{t}"]).mean()
        close(f"loss_{t}", loss, data[f"loss_{t}"], tolerance.value, size)
        for kind, (dparams, dx) in zip(("", "loss_"), gradients, strict=True):
            # Where the loss is 0 its gradient is, but for rounding.
            floor = np.abs(data[f"dx_{t}"]).max() if kind else 0.0
            close(
                f"dx_{kind}{t}", dx, array(f"dx_{kind}{t}"), tolerance.gradient, floor
            )
            keys = [f"dparam_{kind}{name}_{t}" for name in names]
            largest = max(floor, *(np.abs(data[key]).max() for key in keys))
            for key, ours in zip(keys, names.values(), strict=True):
                close(key, dparams[ours], data[key], tolerance.gradient, largest)
        for name, ours in BN_STATE.items():
            key = f"state_{name}_{t}"
            close(key, stats[ours], data[key], tolerance.value)
        eta = data[f"state_last_eta_{t}"]
        if eta >= 0:
            close(f"eta_{t}", 1 / stats["inverse_rate"], eta, tolerance.value)
    y = norm.apply({"params": params, STATS: stats}, array("x_eval"), train=False)
    close("y_eval", y, array("y_eval"), tolerance.value)
