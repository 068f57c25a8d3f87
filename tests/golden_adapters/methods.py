"""Adapters of methods around a trained network: calibration, bits, distillation."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import calibration, norms
from normjax.calibration.temperature import softmax
from normjax.data.mix import one_hot_smooth
from normjax.quantize import (
    allocate_bits,
    allocations,
    analog_input,
    analog_output,
    asymmetric_quantize,
    calibrate_log_sqrt2,
    calibrate_uniform,
    distill_images,
    divergence,
    noise_std,
    quantize_outputs,
    reduce_precision,
    rescale_norm,
    statistics_distance,
)
from normjax.tasks import Classification
from tests.golden_adapters import described, registered
from tests.golden_adapters.compare import Tolerance, close
from tests.golden_adapters.run import Case, cast, pure
from tests.golden_adapters.translate import of

HOST = (Tolerance("float64", 1e-9, 1e-9),)
"""Of what is computed on the host in float64, has edges, or divides by differences."""

BOTH = (*HOST, Tolerance("float32", 1e-5, 1e-4))

STEPS = (*HOST, Tolerance("float32", 1e-4, 1e-4))
"""Of steps of Adam, whose first are as long however small the gradient, and of small
differences of large sums."""

host_runner = partial(registered, by="variant", tolerances=HOST)
method_runner = partial(registered, by="variant", tolerances=BOTH)
method_case = partial(described, tolerances=BOTH)


def agree(data, found, tolerance, given=(), unused=()):
    """Every array of a file is one of those found, or was given, or is no result here.

    Args:
      found: ours by key.  given: keys of arguments.  unused: those that nothing here
        stands for.
    """
    left = data.keys() - found.keys() - set(given) - set(unused)
    assert not left, f"nothing was compared with {sorted(left)}"
    assert found.keys() <= data.keys(), sorted(found.keys() - data.keys())
    for name, value in found.items():
        value, expected = np.asarray(value), data[name]
        if expected.dtype.kind in "bi":
            np.testing.assert_array_equal(value, expected, name)
        else:
            close(name, value, expected, tolerance.value)


@host_runner("calibration")
def calibration_errors(data, meta, tolerance):
    kwargs, logits, labels = meta["kwargs"], data["logits"], data["labels"]
    bins, p = kwargs["bins"], softmax(logits)
    c, h = calibration.confidence_and_hits(p, labels)
    table = calibration.reliability(c, h, bins)
    cuts = {
        "ece_equal_mass": "split",
        "ece_equal_mass_ceil": "ceil",
        "ece_adaptive_interpolated": "interpolated",
    }
    temperature = calibration.fit_temperature(logits, labels)
    scanned = int(re.findall(r"of (\d+)-bin ECE", meta["keys"])[0])

    def ece(p, y, bins=bins):
        pair = calibration.confidence_and_hits(p, y)
        return calibration.expected_error(calibration.reliability(*pair, bins))

    def scan(score):
        return calibration.scan_temperature(logits, labels, score)

    def nll(p, y):
        return calibration.negative_log_likelihood(np.log(p), y)

    brier = calibration.brier_score(p, labels)
    found = {
        "reliability_table": np.stack(table[:3], 1),
        "ece": calibration.expected_error(table),
        "mce": calibration.maximum_error(table),
        "average_calibration_error": calibration.average_error(table),
        "rmsce": calibration.root_mean_square_error(table),
        "classwise_ece": calibration.classwise_error(p, labels, bins),
        "ace": calibration.adaptive_error(p, labels, bins),
        "tace": calibration.adaptive_error(p, labels, bins, kwargs["tace_threshold"]),
        "ks": calibration.kolmogorov_smirnov_error(c, h),
        "kde_ece": calibration.kernel_error(c, h),
        "brier_mean_over_classes": brier / p.shape[1],
        "brier": brier,
        "nll": calibration.negative_log_likelihood(logits, labels),
        "signed_gap": (c - h).mean(),
        "temperature_nll": temperature,
        "nll_at_temperature": nll(softmax(logits / temperature), labels),
        "ece_at_temperature": ece(softmax(logits / temperature), labels),
        "temperature_grid_nll": scan(nll),
        "temperature_grid_ece": scan(partial(ece, bins=scanned)),
    }
    for key, cut in cuts.items():
        edges = calibration.equal_mass_edges(c, bins, cut)
        found[key] = calibration.expected_error(calibration.reliability(c, h, edges))
    unused = ("temperature_lbfgs_reference",)
    agree(data, found, tolerance, ("logits", "labels"), unused)


@host_runner("pskd_metrics")
def selective_risk(data, meta, tolerance):
    width = meta["kwargs"]["bin_size"]
    pair = calibration.confidence_and_hits(data["probabilities"], data["labels"])
    edges = np.arange(0, 1 + width / 2, width)
    found = {
        "ece_percent": 100
        * calibration.expected_error(calibration.reliability(*pair, edges)),
        "aurc_x1000": 1000 * calibration.risk_coverage(*pair),
        "eaurc_x1000": 1000 * calibration.excess_risk_coverage(*pair),
    }
    agree(data, found, tolerance, ("probabilities", "labels"))


@method_case("label_smoothing")
def label_smoothing(data, meta):
    """Weights of the cross entropy are targets: the smoothed ones of the task."""
    (count, classes), smoothing = data["logits"].shape, meta["kwargs"]["alpha"]
    assert data["labels"].shape == (count,)

    def apply(params, logits, labels):
        del params
        targets = one_hot_smooth(labels, classes, smoothing)
        loss, _ = Classification(classes, (0.0,), (1.0,)).loss(logits, targets)
        return {"loss": loss, "targets": targets}

    return Case(
        pure(apply),
        inputs={"logits": of("logits")},
        outputs={"loss": of("loss"), "targets": of("targets")},
        fixed={"labels": of("labels")},
        gradients={"loss": ("d{}", "dparam_{}")},
    )


OURS = {2: (1, 0), 4: (2, 3, 1, 0)}
"""Axes of weights [O, I, ...] as of kernels [..., I, O]."""


@host_runner("repq_uniform")
def uniform_quantizers(data, meta, tolerance):
    found = {}
    kinds = [k.removeprefix("x_") for k in data if k.startswith("x_")]
    for kind in kinds:
        x, x2 = (jnp.asarray(data[f"{k}_{kind}"]) for k in ("x", "x2"))
        weight, channels = kind.startswith("weight"), not kind.endswith("tensor")
        axis = 0 if weight else -1
        made = calibrate_uniform(
            x, meta["kwargs"]["n_bits"], axis if channels else None
        )
        found[f"y_{kind}"], found[f"y2_{kind}"] = made(x), made(x2)
        found[f"delta_{kind}"] = made.scale
        found[f"zero_point_{kind}"] = made.zero_point
    agree(data, found, tolerance, [f"{x}_{k}" for x in ("x", "x2") for k in kinds])


@host_runner("repq_logsqrt2")
def log_sqrt2(data, meta, tolerance):
    x, x2 = (jnp.asarray(data[k]) for k in ("x", "x2"))
    made = calibrate_log_sqrt2(x, meta["kwargs"]["n_bits"])
    found = {"y": made(x), "y2": made(x2), "delta": made.scale}
    agree(data, found, tolerance, ("x", "x2"))


@host_runner("repq_reparam")
def scale_reparameterization(data, meta, tolerance):
    bits, arrays = meta["kwargs"]["n_bits"], cast(data, tolerance.dtype)
    epsilon = meta["kwargs"]["norm_eps"]
    names = ("norm_weight", "norm_bias", "linear_weight", "linear_bias")
    g, t, w, c = (arrays.get(f"param_{name}") for name in names)

    def linear(h, kernel, bias):
        return h @ kernel + (0 if bias is None else bias.reshape(1, 1, -1))

    def normed(scale, bias):
        module = norms.build("layer_norm", epsilon=epsilon)()
        params = {"params": {"scale": scale, "bias": bias}}
        return module.apply(params, arrays["x"])

    channels = calibrate_uniform(normed(g, t), bits, -1)
    new = rescale_norm(g, t, w.T, c, channels)
    h = new.quantizer(normed(new.scale, new.bias))
    kernel = calibrate_uniform(new.kernel, bits, -1)(new.kernel)
    s, z = channels.scale.ravel(), channels.zero_point.ravel()
    full = linear(normed(new.scale, new.bias), new.kernel, new.linear_bias)
    close("before", linear(normed(g, t), w.T, c), full, tolerance.value)
    found = {
        "act_delta": s,
        "act_zero_point": z,
        "target_delta": new.quantizer.scale,
        "target_zero_point": new.quantizer.zero_point,
        "r": s / new.quantizer.scale,
        "b": t * new.scale / g - new.bias,
        "new_norm_weight": new.scale,
        "new_norm_bias": new.bias,
        "new_linear_weight": new.kernel.T,
        "new_linear_bias": new.linear_bias,
        "y_full_precision": full,
        "h_quantized": h,
        "new_linear_weight_quantized": kernel.T,
        "y_quantized": linear(h, kernel, new.linear_bias),
    }
    agree(data, found, tolerance, ("x", *(f"param_{name}" for name in names)))


class ConvNet(nn.Module):
    """conv, norm in evaluation, ReLU, for each width; mean over positions; logits.

    Gives what norms read, too.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        read = {}
        for i, (width, stride) in enumerate(
            zip(self.widths, self.strides, strict=True)
        ):
            conv = nn.Conv(
                width, (3, 3), stride, padding=1, use_bias=False, name=f"conv{i}"
            )
            x = read[f"bn{i}"] = conv(x)
            norm = nn.BatchNorm(True, epsilon=self.epsilon, name=f"bn{i}")
            x = nn.relu(norm(x))
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2))), read


def conv_net(data, meta, dtype):
    """The network and its variables; the norms' statistics."""
    kwargs = meta["kwargs"]
    count = range(len(kwargs["channels"]))
    sizes = (kwargs[k] for k in ("channels", "strides"))
    net = ConvNet(*map(tuple, sizes), kwargs["classes"], kwargs["bn_eps"])
    arrays = {
        k.removeprefix("param_body.").removeprefix("param_"): v for k, v in data.items()
    }
    params = {
        f"conv{i}": {"kernel": arrays[f"conv{i}.weight"].transpose(2, 3, 1, 0)}
        for i in count
    }
    params["fc"] = {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}
    for i in count:
        params[f"bn{i}"] = {
            "scale": arrays[f"bn{i}.weight"],
            "bias": arrays[f"bn{i}.bias"],
        }
    stats = {
        f"bn{i}": {k: arrays[f"bn{i}.running_{k}"] for k in ("mean", "var")}
        for i in count
    }
    return net, cast({"params": params, "batch_stats": stats}, dtype)


LAST = (0, 2, 3, 1)
"""Axes of maps [B, C, H, W] as [B, H, W, C]."""


@registered("zeroq_distill", by="variant", tolerances=STEPS)
def distilled_images(data, meta, tolerance):
    net, variables = conv_net(data, meta, tolerance.dtype)
    kwargs, stats = meta["kwargs"], variables["batch_stats"]
    assert (tuple(kwargs["adam_betas"]), kwargs["adam_eps"]) == ((0.9, 0.999), 1e-8)

    @jax.jit
    def loss(x):
        _, read = net.apply(variables, x)
        each = [statistics_distance(h, **stats[name]) for name, h in read.items()]
        return sum(each) + statistics_distance(x, 0, 1 - 1e-6)

    found = {}
    for kind in ("start", "wide"):
        x = cast(data[f"x_{kind}"].transpose(LAST), tolerance.dtype)
        value, gradient = jax.value_and_grad(loss)(x)
        found[f"loss_{kind}"] = value
        found[f"dx_{kind}"] = gradient.transpose(0, 3, 1, 2)
    start = cast(data["distill_x0"].transpose(LAST), tolerance.dtype)
    steps = {"steps": kwargs["steps"], "rate": kwargs["adam_lr"]}
    made, losses = distill_images(loss, start, **steps)
    found["distill_x"], found["distill_losses"] = made.transpose(0, 3, 1, 2), losses
    given = {k for k in data if k.startswith("param_")} | {"x_start", "x_wide"}
    agree(data, found, tolerance, given | {"distill_x0"})


@host_runner("zeroq_quantizer")
def zeroq_quantizer(data, meta, tolerance):
    bits, found = meta["kwargs"]["bits"], {}
    for kind in ("conv", "linear"):
        weight = jnp.asarray(data[f"w_{kind}"])
        axes = OURS[weight.ndim]
        y = quantize_outputs(weight.transpose(axes), bits)
        found[f"y_{kind}"] = y.transpose(np.argsort(axes))
    ends = (data[k].reshape(()) for k in ("a_min", "a_max"))
    found["y_a"] = asymmetric_quantize(jnp.asarray(data["a"]), *ends, bits)
    agree(data, found, tolerance, ("w_conv", "w_linear", "a", "a_min", "a_max"))


@host_runner("zeroq_sensitivity")
def zeroq_sensitivity(data, meta, tolerance):
    net, variables = conv_net(data, meta, tolerance.dtype)
    x = cast(data["x"].transpose(LAST), tolerance.dtype)
    params, candidates = variables["params"], data["candidate_bits"].tolist()
    layers = [*(f"conv{i}" for i in range(len(params) // 2)), "fc"]
    full, _ = net.apply(variables, x)

    def sensitivity(layer, bits):
        kernel = quantize_outputs(params[layer]["kernel"], bits)
        changed = {**params, layer: {**params[layer], "kernel": kernel}}
        return divergence(full, net.apply({**variables, "params": changed}, x)[0])

    table = np.array([[sensitivity(n, bits) for bits in candidates] for n in layers])
    sizes = [params[layer]["kernel"].size for layer in layers]
    front = allocations(table, sizes, candidates)
    budgets = data["budget_bits"].tolist()
    found = {
        "sensitivity": table,
        "layer_sizes": sizes,
        "chosen_bits": [
            allocate_bits(table, sizes, candidates, b).bits for b in budgets
        ],
        "pareto_size_bits": [one.size for one in front],
        "pareto_sensitivity": [one.sensitivity for one in front],
    }
    given = {k for k in data if k.startswith("param_")} | {"x", "candidate_bits"}
    agree(data, found, tolerance, given | {"budget_bits"})


@method_runner("analog_noise")
def analog_noise(data, meta, tolerance):
    kwargs, arrays = meta["kwargs"], cast(data, tolerance.dtype)
    x, gaussian, dy = (arrays[k] for k in ("x", "gaussian", "dy"))
    given = {"divide": kwargs["divide"]}
    std = noise_std(kwargs["precision"], kwargs["leakage"])
    precision = kwargs["precision"]
    found = {
        "reduced": reduce_precision(x, precision, **given),
        "stochastic_reduced": reduce_precision(x, precision, uniform=arrays["uniform"]),
        "std": std,
    }
    for name, function in (("doa", analog_input), ("aod", analog_output)):
        apply = partial(
            function, gaussian=gaussian, precision=precision, std=std, **given
        )
        found[name], vjp = jax.vjp(apply, x)
        found[f"dx_{name}"] = vjp(dy)[0]
    agree(data, found, tolerance, ("x", "dy", "uniform", "gaussian"))
