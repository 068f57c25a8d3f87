"""Adapters of the weight reparameterizations, of clipping and of the projection."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import fusion, optim, reparam
from normjax.core.collections import PARAMS, SPECTRAL_STATS
from tests.golden_adapters import weight_case, weight_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.run import Case, cast
from tests.golden_adapters.translate import (
    channels_last,
    inside,
    maps,
    of,
    ordered,
    scalar,
    transposed,
)


class Host(nn.Module):
    """One layer as a model."""

    layer: nn.Module

    def __call__(self, x, train=False):
        return self.layer(x)


def conv_of(data, meta, kernel: np.ndarray, x: np.ndarray) -> nn.Module:
    """The convolution of a kernel [kh, kw, I, O] on x [B, H, W, C]."""
    kwargs = meta["kwargs"]
    return nn.Conv(
        kernel.shape[-1],
        kernel.shape[:2],
        strides=kwargs.get("stride", 1),
        padding=kwargs.get("padding", 0),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        use_bias="param_bias" in data,
    )


def reparameterized(meta, spec, layer, kernel, state=(), **more) -> Case:
    """A reparameterized layer in training; in evaluation merged, too.

    Args:
      spec: the reparameterization.  layer: the plain one.  kernel: function of its
        weights to our layout.  state: layout.  more: arguments of `Case`.
    """
    model = reparam.reparameterize(Host(layer), {"pattern": "layer", **spec})

    def apply(variables, x, *, train):
        if not train:
            plain, merged = fusion.merge(model, variables)
            y = model.apply(variables, x)
            return {"y": y, "merged": plain.apply(merged, x)}, {}
        made = reparam.effective(model.rules, variables, train=True)
        y, new = model.apply(variables, x, train=True, mutable=[SPECTRAL_STATS])
        return {"y": y, "kernel": made.params["layer"]["kernel"]}, new

    layout = {"kernel": of("weight", to=kernel), "bias": of("bias"), "gain": of("gain")}
    layout["gamma"] = scalar("sigma")
    y = of("y", to=channels_last(meta))
    return Case(
        apply,
        inside("layer", layout),
        inside(f"{SPECTRAL_STATS}/layer", dict(state)),
        inputs=maps(channels_last(meta))["inputs"],
        outputs={"y": y, "merged": y, "kernel": of("weight_out", to=kernel)},
        **more,
    )


def convolution(data, meta, spec) -> Case:
    """A convolution whose layouts the meta names."""
    kernel = ordered(meta["layout"]["param_weight"], "kh kw I O")
    weight = kernel(data["param_weight"])
    conv = conv_of(data, meta, weight, channels_last(meta)(data["x_0"]))
    # Rounding of the raw weights is an error of the centred ones, next to their spread.
    units = weight.reshape(-1, conv.features)
    spread = np.std(units[:, np.ptp(units, 0) > 0], 0).min(initial=np.inf)
    rounding = np.abs(units).max() / spread
    return reparameterized(meta, spec, conv, kernel, rounding=rounding)


@weight_case("ws")
def weight_standardization(data, meta):
    spec = {
        "name": "weight_standardization",
        "epsilon": meta["kwargs"]["eps"],
        "epsilon_inside": meta["case"].startswith("sqrt_var"),
        "unbiased": meta["kwargs"]["unbiased_var"],
    }
    return convolution(data, meta, spec)


@weight_case("sws")
def scaled_weight_standardization(data, meta):
    spec = {"name": "scaled_weight_standardization", "epsilon": meta["kwargs"]["eps"]}
    return convolution(data, meta, spec)


def window_of(data, meta) -> tuple[int, int]:
    """Kernel size of a convolution of which only kh * kw is known, by its output."""
    kwargs, (channels, *size) = meta["kwargs"], data["x_0"].shape[1:]
    taps = data["param_weight"].shape[1] // channels
    padding, stride = kwargs.get("padding", 0), kwargs.get("stride", 1)

    def fits(window):
        pairs = zip(size, window, strict=True)
        out = [(n + 2 * padding - k) // stride + 1 for n, k in pairs]
        return out == list(data["y_0"].shape[2:])

    windows = [(k, taps // k) for k in range(1, taps + 1) if taps % k == 0]
    return min(filter(fits, windows), key=lambda window: abs(window[0] - window[1]))


@weight_case("sigmareparam")
def sigma_reparam(data, meta):
    """`u` follows a convolution's out x (in kh kw); ours is (kh kw in)."""
    weight, kernel, right = data["param_weight"], np.transpose, of("u")
    layer = nn.Dense(len(weight), use_bias="param_bias" in data)
    if "kh" in meta["layout"]["param_weight"]:
        shape = (data["x_0"].shape[1], *window_of(data, meta))

        def kernel(rows):
            return rows.reshape(-1, *shape).transpose(2, 3, 1, 0)

        x = channels_last(meta)(data["x_0"])
        layer = conv_of(data, meta, kernel(weight), x)
        right = of("u", to=lambda u: kernel(u).reshape(-1))
    state = {"right": right, "sigma": scalar("spectral_norm")}
    start, spec = {"layer": {"sigma": np.ones(())}}, {"name": "sigma_reparam"}
    start = {SPECTRAL_STATS: start}
    return reparameterized(meta, spec, layer, kernel, state, start=start)


@weight_case("srn_conv")
def stable_rank_normalization(data, meta):
    kwargs, described = meta["kwargs"], meta["layout"]
    described = described.get("param_weight", described.get("weight"))
    hwio = ordered(described, "kh kw I O")
    height, width, inputs = hwio(data["param_weight"]).shape[:-1]

    def exact(variables, *, train):
        kernel, rank = variables[PARAMS]["kernel"], kwargs["target_stable_rank"]
        vectors = reparam.leading_vectors(kernel)
        made = reparam.stable_rank_normalize(kernel, *vectors, stable_rank=rank)
        return kwargs.get("target_spectral_norm", 1.0) * made, {}

    def iterated(variables, *, train):
        method = reparam.StableRankNormalization(
            rank_ratio=kwargs["rank_ratio"], iterations=kwargs["n_power_iterations"]
        )
        state = variables[SPECTRAL_STATS]
        layer, new = method.effective(variables[PARAMS], {}, state, train=train)
        name = "y" if train else "evaluated"
        return {name: layer["kernel"]}, {SPECTRAL_STATS: new}

    def vector(v):
        return np.moveaxis(v.reshape(inputs, height, width), 0, -1).reshape(-1)

    state = {"left": of("u"), "right": of("v", to=vector)}
    single = meta["steps"] is None
    case = Case(
        exact if single else iterated,
        {"kernel": of("weight", to=hwio)},
        inside(SPECTRAL_STATS, state),
        inputs={},
        outputs={"y": of("weight_out", to=hwio), "evaluated": of("weight", to=hwio)},
    )
    more = ("sigma1", "stable_rank_*")
    return dataclasses.replace(case, gradients={}, unused=more) if single else case


@weight_case("ssf")
def scale_and_shift(data, meta):
    if meta["steps"] is None:
        return scale_and_shift_fold(data, meta)

    def apply(variables, x, *, train):
        own = (variables[PARAMS][k] for k in ("scale", "shift"))
        return reparam.scale_and_shift(x, *own), {}

    params = {k: of(k) for k in ("scale", "shift")}
    return Case(apply, params, **maps(channels_last(meta)))


def scale_and_shift_fold(data, meta):
    """Forward and weights, before and after merging."""
    features = len(data["linear_weight"])
    dense = nn.Dense(features, use_bias="linear_bias" in data)
    rule = {"pattern": "", "name": "scale_and_shift"}
    model = reparam.reparameterize(Host(dense), rule)

    def apply(variables, x, *, train, **layer):
        own = variables[PARAMS]["layer"]
        variables = {PARAMS: {"layer": {**own, **layer}}}
        plain, merged = fusion.merge(model, variables)
        values = {"unfused": model.apply(variables, x), "fused": plain.apply(merged, x)}
        return values | merged[PARAMS]["layer"], {}

    return Case(
        apply,
        inside("layer", {f"ssf_{k}": of(k) for k in ("scale", "shift")}),
        fixed={"kernel": transposed("linear_weight"), "bias": of("linear_bias")},
        outputs={
            "unfused": of("y_unfused"),
            "fused": of("y_fused"),
            "kernel": transposed("fused_weight"),
            "bias": of("fused_bias"),
        },
        gradients={},
    )


@weight_runner("agc")
def adaptive_clip(data, meta, tolerance):
    kwargs = meta["kwargs"]

    def tree(prefix):
        found = {
            k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)
        }
        return cast(found, tolerance.dtype)

    transformation = optim.adaptive_clip(
        kwargs["clipping"], epsilon=kwargs["eps"], multihead=True
    )
    params = tree("param_")
    state = transformation.init(params)
    clipped, _ = transformation.update(tree("grad_"), state, params)
    for name, expected in tree("clipped_").items():
        close(name, clipped[name], expected, tolerance.value)


@weight_runner("nap")
def normalize_and_project(data, meta, tolerance):
    """The norm of a joined (scale, offset) starts as that of (1, 0)."""
    arrays = cast(data, tolerance.dtype)
    assert "project" in meta["kwargs"]["affine_mode"]
    scale, offset = arrays["param_scale"], arrays["param_offset"]
    first = {
        "layer": {"kernel": arrays["param_init_weight"].T},
        "norm": {"scale": jnp.ones_like(scale), "bias": jnp.zeros_like(offset)},
    }
    wanted = {
        "layer": {"kernel": arrays["param_weight"].T},
        "norm": {"scale": scale, "bias": offset},
    }
    transformation = optim.normalize_and_project()
    updates = jax.tree.map(jnp.subtract, wanted, first)
    updates, _ = transformation.update(updates, transformation.init(first), first)
    new = optax.apply_updates(first, updates)
    for name, value in (
        ("weight_out", new["layer"]["kernel"].T),
        ("scale_out", new["norm"]["scale"]),
        ("offset_out", new["norm"]["bias"]),
    ):
        close(name, value, data[name], tolerance.value)
