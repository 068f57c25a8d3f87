"""Adapters of maps of what a network looks at."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax import analysis
from normjax.analysis import saliency
from tests.golden_adapters.methods import (
    LAST,
    agree,
    host_runner,
    method_runner,
)
from tests.golden_adapters.run import cast


class Features(nn.Module):
    """Two convolutions, each with a ReLU."""

    widths: tuple[int, int]
    stride: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.widths[0], (3, 3), padding=1, name="conv1")(x))
        conv2 = nn.Conv(self.widths[1], (3, 3), self.stride, padding=1, name="conv2")
        return nn.relu(conv2(x))


class SmallNet(nn.Module):
    """`Features`, perhaps a third convolution with tanh, means, logits."""

    widths: tuple[int, int]
    stride: int
    last: int | None
    classes: int

    @nn.compact
    def __call__(self, x):
        x = Features(self.widths, self.stride, name="features")(x)
        if self.last:
            x = jnp.tanh(nn.Conv(self.last, (3, 3), padding=1, name="conv3")(x))
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


def small_net(data, meta, dtype):
    """The network of the file, its variables, and the keys of its parameters."""
    keys = [k for k in data if k.startswith("param_")]
    params = {"features": {}}
    for key in keys:
        layer, name = key.removeprefix("param_").split(".")
        array = data[key]
        ours = "kernel" if name == "weight" else "bias"
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        inside = layer in ("conv1", "conv2")
        place = params["features"] if inside else params
        place.setdefault(layer, {})[ours] = array.transpose(axes)
    sizes = {k.split(".")[0].removeprefix("param_"): len(data[k]) for k in keys}
    net = SmallNet(
        (sizes["conv1"], sizes["conv2"]),
        meta["kwargs"]["stride"],
        sizes.get("conv3"),
        sizes["fc"],
    )
    return net, cast({"params": params}, dtype), keys


@method_runner("smoothgrad")
def smoothgrad(data, meta, tolerance):
    net, variables, keys = small_net(data, meta, tolerance.dtype)
    kwargs, (x, noise) = (
        meta["kwargs"],
        cast((data["x"], data["noise_unit"]), tolerance.dtype),
    )
    assert len(noise) == kwargs["nsamples"]

    def score(x):
        return net.apply(variables, x[None])[0, kwargs["class_index"]]

    made = analysis.smooth_grad(score, x, noise, kwargs["stdev_spread"])
    found = {
        "stdev": kwargs["stdev_spread"] * (x.max() - x.min()),
        "grad": jax.grad(score)(x),
        "smooth": made.mean,
        "smooth_squared": made.square,
        "vargrad": made.variance,
    }
    agree(data, found, tolerance, ("x", "noise_unit", *keys))


@host_runner("cam")
def class_activation_maps(data, meta, tolerance):
    net, variables, keys = small_net(data, meta, tolerance.dtype)
    x = cast(data["x"].transpose(LAST), tolerance.dtype)
    noise = cast(data["noise"].transpose(0, 1, 3, 4, 2), tolerance.dtype)
    assert len(noise) == meta["kwargs"]["num_samples"]
    classes = jnp.asarray(data["class_index"])

    @jax.jit
    def run(x):
        return analysis.activations_and_gradients(
            net, variables, "features", x, classes
        )

    (a, g), noisy = run(x), [run(x + n) for n in noise]
    many = jnp.stack([gradient for _, gradient in noisy])

    def theirs(maps):
        return jnp.moveaxis(maps, -1, -3)

    # The library takes its ReLU and its map from the last noisy image.
    second, third = (jnp.mean(many**power, 0) for power in (2, 3))
    below = 2 * second + jnp.sum(a * third, (1, 2), keepdims=True) + saliency.SMALL
    weights = jnp.sum(second / below * jax.nn.relu(many[-1]), (1, 2))
    shipped = saliency.activation_map(weights, noisy[-1][0])
    maps = analysis.grad_cam(a, g)
    smooth = partial(analysis.smooth_grad_cam_plus_plus, a, many)
    found = {
        "activations": theirs(a),
        "gradients": theirs(g),
        "noisy_gradients": theirs(many),
        "last_noisy_activations": theirs(noisy[-1][0]),
        "gradcam": maps,
        "gradcam_normalized": analysis.normalized_map(maps),
        "smoothgradcampp_as_shipped": shipped,
        "smoothgradcampp_as_shipped_normalized": analysis.normalized_map(shipped),
        "gradcampp_weights": saliency.plus_plus_weights(a, g),
        "gradcampp": analysis.grad_cam_plus_plus(a, g),
        "smoothgradcampp": smooth(),
        "smoothgradcampp_weights": saliency.smooth_weights(a, many),
        "smoothgradcampp_first_order_numerator": smooth(first_order=True),
    }
    agree(data, found, tolerance, ("x", "class_index", "noise", *keys))
