"""Adapters of losses and statistics of a batch that is worked through in parts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.norms.deferred import moved_together
from normjax.tasks import cached_gradients, contrastive_loss
from tests.golden_adapters import registered
from tests.golden_adapters.compare import LAYERS, NORMS, close
from tests.golden_adapters.run import Case, cast, check
from tests.golden_adapters.translate import (
    of,
)


@registered("gradcache_contrastive", by="variant", tolerances=LAYERS)
def cached_contrastive(data, meta, tolerance):
    """The loss and every gradient of the whole batch, from chunks."""
    names = [k.removeprefix("param_") for k in data if k.startswith("param_")]
    params = cast({k: data[f"param_{k}"] for k in names}, tolerance.dtype)
    towers = ("image", "text")
    inputs = cast({k: data[f"x_{k}"] for k in towers}, tolerance.dtype)

    def encode(params, inputs):
        def one(tower):
            get = {k: params[f"{tower}.{k}"] for k in ENCODER}
            h = jnp.tanh(inputs[tower] @ get["l1.weight"].T + get["l1.bias"][None])
            z = h @ get["l2.weight"].T + get["l2.bias"][None]
            return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

        return tuple(map(one, towers))

    def loss(params, embeddings):
        return contrastive_loss(*embeddings, params["log_temperature"][0])

    chunk = meta["kwargs"]["chunk"]
    run = functools.partial(cached_gradients, encode, loss, chunk_size=chunk)
    value, gradients = jax.jit(run)(params, inputs)
    close("loss", value, data["loss"][0], tolerance.value)
    sizes = (np.abs(data[f"dparam_{k}"]).max() for k in names)
    largest = max(sizes)
    for k in names:
        expected = data[f"dparam_{k}"]
        close(k, gradients[k], expected, tolerance.gradient, largest)


ENCODER = ("l1.weight", "l1.bias", "l2.weight", "l2.bias")


@registered("deferred_batch_norm", by="variant", tolerances=NORMS)
def deferred_batch_norm(data, meta, tolerance):
    """Parts in order, normalised each by itself, and one step of the averages."""
    kwargs = meta["kwargs"]
    momentum = 1 - kwargs.get("momentum", 0.1)
    norm = norms.BatchNorm(momentum=momentum, epsilon=kwargs.get("eps", 1e-5))
    asked = ["batch_stats", "deferred"]

    def apply(variables, x, train):
        if not train:
            return norm.apply(variables, x, train=False), {}
        size = -(-len(x) // kwargs["chunks"])
        parts = [x[i : i + size] for i in range(0, len(x), size)]
        call = functools.partial(norm.apply, variables, train=True, mutable=asked)
        ys, new = zip(*map(call, parts), strict=True)
        moments = jax.tree.map(lambda *t: jnp.stack(t), *(n["deferred"] for n in new))
        stats = moved_together(variables["batch_stats"], moments)
        return jnp.concatenate(ys), {"batch_stats": stats}

    last = {"x": of("x", to=lambda a: a.transpose(0, 2, 3, 1))}
    outputs = {"y": of("y", to=lambda a: a.transpose(0, 2, 3, 1))}
    params = {"scale": of("weight"), "bias": of("bias")}
    state = {f"batch_stats/{n}": of(f"running_{n}") for n in ("mean", "var")}
    zeros, ones = np.zeros(kwargs["num_features"]), np.ones(kwargs["num_features"])
    start = {"batch_stats": {"mean": zeros, "var": ones}}
    case = Case(apply, params, state=state, inputs=last, outputs=outputs, start=start)
    steps = sum(re.fullmatch(r"x_\d+", key) is not None for key in data)
    check(case, data, {**meta, "steps": steps}, tolerance)
