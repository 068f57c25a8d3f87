"""Adapters of the norms over tokens, channels, parts of the batch and regions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.core.collections import BATCH_STATS, LOSSES
from normjax.core.dense import ZeroMeanDense
from tests.golden_adapters import norm_case
from tests.golden_adapters.norms import BN, BN_STATE, batch_arguments, norm_of
from tests.golden_adapters.translate import (
    channels_last,
    conv,
    flat,
    inside,
    of,
    scalar,
    transposed,
)


@norm_case("crmsnorm", "simplermsnorm")
def without_parameters(data, meta):
    name = {"crmsnorm": "crms_norm", "simplermsnorm": "simple_rms_norm"}[
        meta["variant"]
    ]
    return norm_of(meta, norms.build(name, epsilon=meta["kwargs"]["eps"])(), {})


@norm_case("zeromeanlinear")
def zero_mean_linear(data, meta):
    layer = ZeroMeanDense(len(data["param_weight"]), use_bias="param_bias" in data)
    return norm_of(meta, layer, {"kernel": transposed("weight"), "bias": of("bias")})


@norm_case("ghostbn")
def ghost_batch_norm(data, meta):
    kwargs, batch = meta["kwargs"], len(data["x_0"])
    norm = norms.build(
        "ghost_batch_norm",
        group_size=-(-batch // kwargs["num_ghosts"]),
        **batch_arguments(kwargs),
    )()
    return norm_of(meta, norm, BN, BN_STATE)


@norm_case("maskbn")
def clamped_batch_norm(data, meta):
    kwargs = meta["kwargs"]
    norm = norms.build(
        "clamped_batch_norm",
        use_running_average=None if kwargs["use_run"] else False,
        **batch_arguments(kwargs),
    )()
    return norm_of(meta, norm, BN, BN_STATE)


@norm_case("masksyncbn")
def filled_batch_norm(data, meta):
    kwargs = meta["kwargs"]
    norm = norms.build(
        "filled_batch_norm",
        token_scaling=kwargs["pre_layer_scaling"],
        **batch_arguments(kwargs),
    )()
    return norm_of(meta, norm, *(inside("batch_norm", n) for n in (BN, BN_STATE)))


@norm_case("maskgroupnorm")
def group_norm(data, meta):
    norm = norms.build(
        "group_norm",
        per_token=True,
        num_groups=meta["kwargs"]["groups"],
        epsilon=meta["kwargs"]["eps"],
    )()
    return norm_of(meta, norm, BN)


@norm_case("bcn")
def batch_channel_norm(data, meta):
    kwargs = meta["kwargs"]
    estimate = "moving_speed" in kwargs
    norm = norms.build(
        "batch_channel_norm",
        num_groups=kwargs["groups"],
        statistics="estimate" if estimate else "batch",
        **({"epsilon": kwargs["eps"]} if estimate else batch_arguments(kwargs)),
    )()
    prefix = "bn_" if estimate else "pbn_"
    params = {"scale": flat("weight"), "bias": flat("bias")}
    params |= inside("batch_norm", BN, prefix)
    state = {**BN_STATE, "speed": scalar("estbn_moving_speed")}
    return norm_of(meta, norm, params, inside("batch_norm", state, prefix))


class IBNbBlock(nn.Module):
    """Basic residual block: conv-BN-relu-conv-BN, add, IBN-b, relu."""

    batch: dict
    features: int

    @nn.compact
    def __call__(self, x, *, train):
        h = x
        for i in (1, 2):
            h = nn.Conv(
                self.features, (3, 3), padding=1, use_bias=False, name=f"conv{i}"
            )(h)
            h = norms.build("batch_norm", **self.batch)(name=f"bn{i}")(h, train=train)
            h = nn.relu(h) if i == 1 else h
        norm = norms.build("ibn_b", epsilon=self.batch["epsilon"])(name="ibn")
        return nn.relu(norm(x + h))


@norm_case("ibn")
def ibn(data, meta):
    kwargs, batch = meta["kwargs"], batch_arguments(meta["kwargs"])
    if "param_conv1_weight" in data:
        norm = IBNbBlock(batch, data["x_0"].shape[1])
        params = {f"conv{i}/kernel": conv(f"conv{i}_weight") for i in (1, 2)}
        params |= inside("ibn", BN, "IN_")
        inner = {"bn1": "bn1_", "bn2": "bn2_"}
    else:
        norm = norms.build("ibn_a", ratio=kwargs["ratio"], **batch)()
        params, inner = inside("instance_norm", BN, "IN_"), {"batch_norm": "BN_"}
    state = {}
    for path, prefix in inner.items():
        params |= inside(path, BN, prefix)
        state |= inside(path, BN_STATE, prefix)
    return norm_of(meta, norm, params, state)


@norm_case("evonorm")
def evonorm(data, meta):
    kwargs = meta["kwargs"]
    if "state0_running_var" in data:
        norm = norms.build("evonorm_b0", **batch_arguments(kwargs))()
    else:
        arguments = {"num_groups": kwargs["groups"], "epsilon": kwargs["eps"]}
        norm = norms.build("evonorm_s0", **arguments)()
    return norm_of(meta, norm, {**BN, "v": of("v")}, {"var": of("running_var")})


@norm_case("rn")
def region_norm(data, meta):
    kwargs, affine = meta["kwargs"], {"scale": "gamma", "bias": "beta"}.items()
    if "param_foreground_gamma" in data:
        norm = norms.build("region_norm", epsilon=kwargs["eps"])()
        regions = ("foreground", "background")
        names = {f"{r}_{k}": of(f"{r}_{v}") for r in regions for k, v in affine}
        return norm_of(meta, norm, names)
    norm = norms.build(
        "region_norm_learnable",
        threshold=kwargs["threshold"],
        kernel_size=kwargs["kernel"],
        epsilon=kwargs["eps"],
    )()
    names = {"attention/kernel": conv("sa_conv1_weight")}
    for ours, theirs in affine:
        names[f"{ours}/kernel"] = conv(f"sa_{theirs}_conv_weight")
        names[f"{ours}/bias"] = of(f"sa_{theirs}_conv_bias")
    return norm_of(meta, norm, names)


@norm_case("poincarebn")
def poincare_batch_norm(data, meta):
    """Without running statistics, which the reference has and never writes."""
    kwargs, raw = meta["kwargs"], "ball_isp_c"
    learned = any(np.any(data[k]) for k in data if k.startswith(f"dparam_{raw}_"))
    norm = norms.build(
        "poincare_batch_norm",
        curvature=kwargs["effective_c"],
        learn_curvature=learned,
        epsilon=kwargs["var_eps"],
        margin=kwargs["project_eps"],
    )()
    names = {"mean": of("norm_mean"), "variance": of("norm_var")}
    names |= {"raw_curvature": of(raw)} if learned else {}
    unused = ("state*_norm_running_*", *(() if learned else (f"*param_{raw}*",)))
    return norm_of(meta, norm, names, unused=unused)


@norm_case("adab2n")
def adab2n(data, meta):
    """With task numbers and the gradients of the sown loss."""
    kwargs = meta["kwargs"]
    norm = norms.build(
        "adab2n",
        num_tasks=kwargs["num_tasks"],
        kappa=kwargs["kappa"],
        momentum=1 - kwargs["momentum"],
        epsilon=kwargs["eps"],
    )()
    x = jnp.asarray(channels_last(meta)(data["x_0"]))
    start = dict(norm.init(jax.random.key(0), x, train=True)[BATCH_STATS])
    start["task"] = np.int32(data["state0_cur_tasks"])
    # 1 / eta after that many batches.
    decay, rate = norm.momentum**norm.kappa, np.float64(start["inverse_rate"])
    for _ in range(int(data["state0_num_batches_tracked"])):
        rate = 1 + decay * rate
    start["inverse_rate"] = rate
    etas = [data[f"state_last_eta_{t}"] for t in range(meta["steps"])]

    def apply(variables, x, *, train, **fixed):
        states = [BATCH_STATS, LOSSES] if train else False
        made = norm.apply(variables, x, train=train, mutable=states, **fixed)
        if not train:
            return made, {}
        y, new = made
        stats = new[BATCH_STATS]
        outputs = {"y": y, "loss": new[LOSSES]["adab2n"][0]}
        if min(etas) >= 0:  # the reference does not always keep it
            outputs["eta"] = 1 / stats["inverse_rate"]
        return outputs, {BATCH_STATS: stats}

    case = norm_of(
        meta,
        norm,
        {**BN, "task_weight": of("task_weight")},
        {**BN_STATE, "task": of("cur_tasks")},
        apply=apply,
        start={BATCH_STATS: start},
        fixed={"task_ids": of("task_id")},
        gradients={"y": ("d{}", "dparam_{}"), "loss": ("d{}_loss", "dparam_loss_{}")},
        unused=() if min(etas) >= 0 else ("state_last_eta_*",),
    )
    more = {"loss": of("loss"), "eta": of("state_last_eta")}
    return dataclasses.replace(case, outputs={**case.outputs, **more})
