"""Adapters of scaling by width."""

import jax.numpy as jnp
import numpy as np

from normjax import optim
from tests.golden_adapters.compare import close
from tests.golden_adapters.optim import optim_runner, run_trajectory


@optim_runner("mup")
def mup(data, meta, tolerance):
    if "slope_mup_adam" in data:
        return coordinate_check(data, meta)
    if "y" in data:
        return readout(data, meta, tolerance)
    if "parameter_names" in meta and "widths" in meta["kwargs"]:
        return table(data, meta, tolerance)
    return scaled_trajectory(data, meta, tolerance)


def coordinate_check(data, meta):
    """Measured elsewhere, at random: that the slopes are those of the mean values."""
    widths = np.log(meta["kwargs"]["widths"])
    for name in ("mup_adam", "mup_sgd", "sp_adam", "sp_sgd"):
        values = np.log(data[name]).transpose(1, 0, 2)
        slopes = np.polyfit(widths, values.reshape(len(widths), -1), 1)[0]
        shape = data[f"slope_{name}"].shape
        close(name, slopes.reshape(shape), data[f"slope_{name}"], 1e-6)


def readout(data, meta, tolerance):
    kwargs = meta["kwargs"]
    x, kernel, bias, y = (
        jnp.asarray(data[k], tolerance.dtype)
        for k in ("x", "param_weight", "param_bias", "y")
    )
    made = optim.mup_readout(
        x,
        kernel.T,
        bias,
        width=kwargs["width"] / kwargs["base_width"],
        multiplier=kwargs["output_mult"],
    )
    close("y", made, y, tolerance.value)


def shapes_of(kwargs, width) -> dict[str, tuple[int, ...]]:
    """Of the language model of these files, in the reference's layout."""
    shapes = {"pos": (kwargs["n"], width), "tok.weight": (kwargs["V"], width)}
    for i in range(kwargs["L"]):
        layers = dict.fromkeys("qkvo", (width, width))
        layers |= {"fc1": (kwargs["r"] * width, width)}
        layers |= {"fc2": (width, kwargs["r"] * width)}
        for norm in ("ln1", "ln2"):
            for part in ("weight", "bias"):
                shapes[f"blocks.{i}.{norm}.{part}"] = (width,)
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    shapes |= {"ln.weight": (width,), "ln.bias": (width,)}
    return shapes | {"head.weight": (kwargs["V"], width), "head.bias": (kwargs["V"],)}


def factors_of(kwargs, width) -> dict[str, optim.WidthFactors]:
    base, delta = kwargs["base_width"], kwargs.get("delta_width")
    shapes = [shapes_of(kwargs, w) for w in (base, delta or 2 * base, width)]
    return {
        name: optim.width_factors(*(s[name] for s in shapes), in_axis=-1, out_axis=0)
        for name in shapes[0]
    }


def table(data, meta, tolerance):
    kwargs, names = meta["kwargs"], meta["parameter_names"]
    for width in kwargs["widths"]:
        factors = factors_of(kwargs, width)
        shapes = shapes_of(kwargs, width)
        ratio = width / kwargs["base_width"]
        rows = []
        for name in names:
            each, kernel = factors[name], name.replace(".bias", ".weight")
            layer = len(shapes[kernel]) == 2 and name not in ("pos", "tok.weight")
            own = layer and each.width_axes < 2  # initialised by 1 / sqrt(inputs)
            rescale = ratio**0.5 if own else 1.0
            std = 0.02 * each.initial
            if own:
                std = (3 * shapes[kernel][1]) ** -0.5 * rescale
            std = 0.0 if ".ln" in f".{name}" else std
            robust = optim.robust_factors(each.width_axes, each.width)
            rows.append(
                {
                    "adam_lr": each.adam,
                    "adam_wd": each.adam_decay,
                    "adam_wd_decoupled_flag": 1.0,
                    "sgd_lr": each.sgd,
                    "sgd_wd": each.sgd_decay,
                    "ninf": each.width_axes,
                    "width_mult": each.width,
                    "init_factor": rescale if "head" in name else each.initial,
                    "init_std": std,
                    "default_init_rescale": rescale,
                    "robust_adamw_lr": robust[0],
                    "robust_adamw_wd": robust[1],
                }
            )
        for key in rows[0]:
            expected = data[f"{key}_{width}"]
            close(f"{key}_{width}", [r[key] for r in rows], expected, tolerance.value)
        ones = jnp.ones(1), jnp.ones((1, 1))
        found = optim.mup_readout(*ones, width=ratio)[0]
        close("multiplier", found, data[f"output_multiplier_{width}"], tolerance.value)


def scaled_trajectory(data, meta, tolerance):
    """As groups of a config, by the rules of the table."""
    kwargs = meta["kwargs"]
    kind = "adam" if "betas" in kwargs else "sgd"
    groups = optim.mup_groups(
        factors_of(kwargs, kwargs["width"]), kwargs["weight_decay"], optimizer=kind
    )
    config = {"lr": kwargs["lr"], "warmup_fraction": 0.0, "final_lr_fraction": 1.0}
    config |= {"clip_norm": 0.0, "groups": groups}
    if kind == "adam":
        beta1, beta2 = kwargs["betas"]
        config |= {"name": "adamw", "beta1": beta1, "beta2": beta2}
        config["epsilon"] = kwargs["eps"]
    else:
        config |= {"name": "sgd", "beta1": kwargs["momentum"], "nesterov": False}
    run_trajectory(optim.build(config, 100), data, meta, tolerance)
