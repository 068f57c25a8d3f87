"""Adapters of the weight reparameterizations, of clipping and of the projection."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import fusion, optim, reparam
from normjax.core.collections import PARAMS, SPECTRAL_STATS
from tests.golden_adapters import norm_runner
from tests.golden_adapters.compare import Tolerance, close

TIGHT = {
    "float64": Tolerance("float64", 1e-9, 1e-8),
    "float32": Tolerance("float32", 1e-5, 1e-4),
}


def kernel_of(weight: np.ndarray, layout: str) -> np.ndarray:
    """From a layout like "O I kh kw, ..." to [kh, kw, I, O]."""
    axes = layout.split(",")[0].split()
    return weight.transpose([axes.index(name) for name in ("kh", "kw", "I", "O")])


def channels_last(x):
    """B C H W -> B H W C; other ranks have channels last already."""
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


class Host(nn.Module):
    """One layer as a model."""

    layer: nn.Module

    def __call__(self, x, train=False):
        return self.layer(x)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a case's layer is ours: its module and functions from its arrays to ours.

    Attributes:
      module: the plain layer.  weight, x: to our layout.
      names: reference parameter -> ours, but for those called "weight" and "bias".
    """

    module: nn.Module
    weight: Any
    x: Any = channels_last
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def of(self, name: str, array: np.ndarray) -> np.ndarray:
        """The parameter `name` in the shape of ours."""
        if name == "weight":
            return self.weight(array)
        return array.reshape(()) if self.ours(name) == "gamma" else array

    def ours(self, name: str) -> str:
        return {"weight": "kernel", **self.names}.get(name, name)


def conv_of(data, meta, kernel: np.ndarray, x: np.ndarray) -> nn.Module:
    """The convolution of a kernel [kh, kw, I, O] on x [B, H, W, C]."""
    kwargs = meta["kwargs"]
    padding, stride = kwargs.get("padding", 0), kwargs.get("stride", 1)
    return nn.Conv(
        kernel.shape[-1],
        kernel.shape[:2],
        strides=stride,
        padding=padding,
        feature_group_count=x.shape[-1] // kernel.shape[2],
        use_bias="param_bias" in data,
    )


def run_layer(data, meta, tolerance, spec, layout, state=None):
    """T training steps of one reparameterized layer, then one evaluation.

    Args:
      tolerance: one of `TIGHT`, or wider.
      spec: the reparameterization.  layout: of the layer.
      state: names of its state in the reference and ours.
    """
    state = state or {}
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    model = reparam.reparameterize(Host(layout.module), {"pattern": "layer", **spec})
    names = [k.removeprefix("param_") for k in data if k.startswith("param_")]
    params = {layout.ours(n): cast(layout.of(n, data[f"param_{n}"])) for n in names}
    held = {ours: cast(data[f"state0_{k}"]) for k, ours in state.items()}
    if "right" in held:
        held["sigma"] = jnp.ones((), tolerance.dtype)
    variables: dict[str, Any] = {PARAMS: {"layer": params}}
    if held:
        variables[SPECTRAL_STATS] = {"layer": held}

    @jax.jit
    def step(variables, x, dy):
        def forward(params, x):
            given = {**variables, PARAMS: params}
            return model.apply(given, x, train=True, mutable=[SPECTRAL_STATS])

        made = reparam.effective(model.rules, variables, train=True)
        y, vjp, new = jax.vjp(forward, variables[PARAMS], x, has_aux=True)
        return y, vjp(dy), new, made.params["layer"]["kernel"]

    for t in range(meta["steps"]):
        x, dy = (cast(layout.x(data[f"{k}_{t}"])) for k in ("x", "dy"))
        y, (grads, dx), new, kernel = step(variables, x, dy)
        close(f"y_{t}", y, layout.x(data[f"y_{t}"]), tolerance.value)
        close(f"dx_{t}", dx, layout.x(data[f"dx_{t}"]), tolerance.gradient)
        for key in ("weight_out", f"weight_out_{t}"):
            if key in data:
                close(key, kernel, layout.weight(data[key]), tolerance.value)
        for name in names:
            expected = layout.of(name, data[f"dparam_{name}_{t}"])
            ours = grads["layer"][layout.ours(name)]
            close(f"dparam_{name}_{t}", ours, expected, tolerance.gradient)
        for name, ours in state.items():
            expected, actual = data[f"state_{name}_{t}"], new[SPECTRAL_STATS]["layer"]
            close(f"state_{name}_{t}", actual[ours], expected, tolerance.value)
            if ours == "right":
                norm = data[f"state_spectral_norm_{t}"].reshape(())
                close(f"sigma_{t}", actual["sigma"], norm, tolerance.value)
        variables = {**variables, **new}
    if "x_eval" in data:
        x, expected = cast(layout.x(data["x_eval"])), layout.x(data["y_eval"])
        close("y_eval", model.apply(variables, x), expected, tolerance.value)
        plain, merged = fusion.merge(model, variables)
        close("y_merged", plain.apply(merged, x), expected, tolerance.value)


def run_convolution(data, meta, tolerance, spec):
    """A convolution whose layouts the meta names."""
    of = meta["layout"]
    last = of["x"].split() == list("BHWC")
    weight = functools.partial(kernel_of, layout=of["param_weight"])
    x = np.asarray if last else channels_last
    conv = conv_of(data, meta, weight(data["param_weight"]), x(data["x_0"]))
    # Rounding of the raw weights is an error of the centred ones, next to their spread.
    units = np.float64(weight(data["param_weight"])).reshape(-1, conv.features)
    spread = np.std(units[:, np.ptp(units, 0) > 0], 0).min(initial=np.inf)
    rounding = float(np.finfo(tolerance.dtype).eps * np.abs(units).max() / spread)
    tight = TIGHT[tolerance.dtype]
    value, gradient = max(tight.value, rounding), max(tight.gradient, rounding)
    tolerance = Tolerance(tolerance.dtype, value, gradient)
    run_layer(data, meta, tolerance, spec, Layout(conv, weight, x))


@norm_runner("ws")
def weight_standardization(data, meta, tolerance):
    spec = {
        "name": "weight_standardization",
        "epsilon": meta["kwargs"]["eps"],
        "epsilon_inside": meta["case"].startswith("sqrt_var"),
        "unbiased": meta["kwargs"]["unbiased_var"],
    }
    run_convolution(data, meta, tolerance, spec)


@norm_runner("sws")
def scaled_weight_standardization(data, meta, tolerance):
    spec = {"name": "scaled_weight_standardization", "epsilon": meta["kwargs"]["eps"]}
    run_convolution(data, meta, tolerance, spec)


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


@norm_runner("sigmareparam")
def sigma_reparam(data, meta, tolerance):
    """`u` follows a convolution's out x (in kh kw); ours is (kh kw in)."""
    weight = data["param_weight"]
    if "kh" not in meta["layout"]["param_weight"]:
        dense = nn.Dense(len(weight), use_bias="param_bias" in data)
        layout = Layout(dense, np.transpose, names={"sigma": "gamma"})
    else:
        shape = (data["x_0"].shape[1], *window_of(data, meta))

        def to_ours(rows):
            return kernel_of(rows.reshape(-1, *shape), "O I kh kw")

        x = channels_last(data["x_0"])
        conv = conv_of(data, meta, to_ours(weight), x)
        layout = Layout(conv, to_ours, names={"sigma": "gamma"})
        vectors = {k: v for k, v in data.items() if k.startswith("state") and "_u" in k}
        moved = {k: np.moveaxis(v.reshape(shape), 0, -1) for k, v in vectors.items()}
        data = {**data, **{k: v.reshape(-1) for k, v in moved.items()}}
    tight, spec = TIGHT[tolerance.dtype], {"name": "sigma_reparam"}
    run_layer(data, meta, tight, spec, layout, {"u": "right"})


@norm_runner("srn_conv")
def stable_rank_normalization(data, meta, tolerance):
    tolerance, of = TIGHT[tolerance.dtype], meta["layout"]
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    hwio = functools.partial(
        kernel_of, layout=of["param_weight"] if "param_weight" in of else of["weight"]
    )
    kernel = cast(hwio(data["param_weight"]))
    if meta["steps"] is None:
        rank = meta["kwargs"]["target_stable_rank"]
        made = reparam.stable_rank_normalize(
            kernel, *reparam.leading_vectors(kernel), stable_rank=rank
        )
        made = meta["kwargs"].get("target_spectral_norm", 1.0) * made
        return close("weight", made, hwio(data["weight_out"]), tolerance.value)
    method = reparam.StableRankNormalization(
        rank_ratio=meta["kwargs"]["rank_ratio"],
        iterations=meta["kwargs"]["n_power_iterations"],
    )

    def state_at(suffix):
        height, width, inputs = kernel.shape[:-1]
        right = data[suffix.format("v")].reshape(inputs, height, width)
        right = np.moveaxis(right, 0, -1).reshape(-1)
        return {"left": data[suffix.format("u")], "right": right}

    @jax.jit
    def step(kernel, state, dy):
        def forward(kernel):
            layer, new = method.effective({"kernel": kernel}, {}, state, train=True)
            return layer["kernel"], new

        made, vjp, new = jax.vjp(forward, kernel, has_aux=True)
        return made, vjp(dy)[0], new

    state = jax.tree.map(cast, state_at("state0_{}"))
    for t in range(meta["steps"]):
        made, grad, state = step(kernel, state, cast(hwio(data[f"dy_{t}"])))
        close(f"weight_{t}", made, hwio(data[f"weight_out_{t}"]), tolerance.value)
        expected = hwio(data[f"dparam_weight_{t}"])
        close(f"dweight_{t}", grad, expected, tolerance.gradient)
        for name, value in state_at(f"state_{{}}_{t}").items():
            close(f"{name}_{t}", state[name], value, tolerance.value)
    layer, kept = method.effective({"kernel": kernel}, {}, state, train=False)
    assert kept is state
    close("weight_eval", layer["kernel"], hwio(data["weight_eval"]), tolerance.value)


@norm_runner("ssf")
def scale_and_shift(data, meta, tolerance):
    if meta["steps"] is None:
        return scale_and_shift_fold(data, tolerance)
    tolerance = TIGHT[tolerance.dtype]
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    own = [cast(data[f"param_{k}"]) for k in ("scale", "shift")]
    run = jax.jit(reparam.scale_and_shift)
    for t in range(meta["steps"]):
        x, dy = (cast(channels_last(data[f"{k}_{t}"])) for k in ("x", "dy"))
        y, vjp = jax.vjp(run, x, *own)
        close(f"y_{t}", y, channels_last(data[f"y_{t}"]), tolerance.value)
        expected = [channels_last(data[f"dx_{t}"])]
        expected += [data[f"dparam_{k}_{t}"] for k in ("scale", "shift")]
        for name, grad, value in zip(
            ("dx", "dscale", "dshift"), vjp(dy), expected, strict=True
        ):
            close(f"{name}_{t}", grad, value, tolerance.gradient)
    if "x_eval" in data:
        y = run(cast(channels_last(data["x_eval"])), *own)
        close("y_eval", y, channels_last(data["y_eval"]), tolerance.value)


def scale_and_shift_fold(data, tolerance):
    """Forward and weights, before and after merging."""
    tolerance = TIGHT[tolerance.dtype]
    layer = {"kernel": data["linear_weight"].T}
    if "linear_bias" in data:
        layer["bias"] = data["linear_bias"]
    own = {f"ssf_{k}": data[f"param_{k}"] for k in ("scale", "shift")}
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    variables = jax.tree.map(cast, {PARAMS: {"layer": {**layer, **own}}})
    dense = nn.Dense(layer["kernel"].shape[1], use_bias="bias" in layer)
    rule = {"pattern": "", "name": "scale_and_shift"}
    model, x = reparam.reparameterize(Host(dense), rule), cast(data["x"])
    plain, merged = fusion.merge(model, variables)
    close("y_unfused", model.apply(variables, x), data["y_unfused"], tolerance.value)
    close("y_fused", plain.apply(merged, x), data["y_fused"], tolerance.value)
    close(
        "kernel",
        merged[PARAMS]["layer"]["kernel"],
        data["fused_weight"].T,
        tolerance.value,
    )
    close("bias", merged[PARAMS]["layer"]["bias"], data["fused_bias"], tolerance.value)


@norm_runner("agc")
def adaptive_clip(data, meta, tolerance):
    tolerance, kwargs = TIGHT[tolerance.dtype], meta["kwargs"]

    def tree(prefix):
        found = {
            k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)
        }
        return {k: jnp.asarray(v, tolerance.dtype) for k, v in found.items()}

    transformation = optim.adaptive_clip(
        kwargs["clipping"], epsilon=kwargs["eps"], multihead=True
    )
    params = tree("param_")
    state = transformation.init(params)
    clipped, _ = transformation.update(tree("grad_"), state, params)
    for name, expected in tree("clipped_").items():
        close(name, clipped[name], expected, tolerance.value)


@norm_runner("nap")
def normalize_and_project(data, meta, tolerance):
    """The norm of a joined (scale, offset) starts as that of (1, 0)."""
    tolerance = TIGHT[tolerance.dtype]
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    assert "project" in meta["kwargs"]["affine_mode"]
    scale, offset = cast(data["param_scale"]), cast(data["param_offset"])
    first = {
        "layer": {"kernel": cast(data["param_init_weight"].T)},
        "norm": {"scale": jnp.ones_like(scale), "bias": jnp.zeros_like(offset)},
    }
    wanted = {
        "layer": {"kernel": cast(data["param_weight"].T)},
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
