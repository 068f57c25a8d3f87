"""Adapters of the norms whose backward pass writes state."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.core.collections import OVERWRITE
from tests.golden_adapters import norm_case
from tests.golden_adapters.norms import BN, norm_of
from tests.golden_adapters.translate import channels_last, flat, inside, of


def count(name):
    return of(name, to=lambda a: np.int32(a.reshape(())))


def written_backwards(data, meta, name, arguments, forward, backward):
    """A norm whose state is written in both directions.

    Args:
      forward, backward: layouts of `batch_stats` and `_overwrite_with_gradient`.
    """
    affine = {
        f"use_{ours}": f"param_{names[0]}" in data for ours, (names, _) in BN.items()
    }
    norm = norms.build(name, **arguments, epsilon=meta["kwargs"]["eps"], **affine)()
    # What the reference does not keep (a counter) starts at its initial value.
    x = jnp.asarray(channels_last(meta)(data["x_0"]))
    start = dict(norm.init(jax.random.key(0), x, train=True))
    start.pop("params", None)
    return norm_of(meta, norm, BN, forward, inside(OVERWRITE, backward), start=start)


@norm_case("powernorm")
def power_norm(data, meta):
    kwargs = meta["kwargs"]
    # The paper's equations: nu counts (1 - decay) in, everything is a running value.
    paper, weight = "state0_nu" in data, 1 - kwargs["alpha_bkw"]
    arguments = {
        "num_groups": kwargs["group_num"],
        "warmup_steps": kwargs["warmup_iters"],
        "forward_decay": kwargs["alpha_fwd"],
        "backward_decay": kwargs["alpha_bkw"],
        "backward_scale": "running" if paper else "batch",
        "floor": 0.0,
    }
    forward = {"phi": flat("running_phi"), "step": count("iters")}
    backward = {"nu": of("nu", to=lambda nu: nu / weight) if paper else flat("ema_gz")}
    return written_backwards(data, meta, "power_norm", arguments, forward, backward)


@norm_case("un")
def unified_norm(data, meta):
    kwargs = meta["kwargs"]
    size = kwargs.get("window_size", 4)
    forward, backward = size if isinstance(size, list) else (size, size)
    arguments = {
        "window": forward,
        "gradient_window": backward,
        "warmup_steps": kwargs["warmup_iters"],
        "filter_outliers": kwargs.get("outlier_filtration", False),
        "momentum": kwargs["momentum"],
    }
    forward = {
        "phi": of("running_var"),
        "window": of("buffer_x2"),
        "step": count("iters"),
        "skipped": count("skip_counter"),
    }
    backward = {"window": of("buffer_gz"), "nu": of("ema_gz")}
    return written_backwards(data, meta, "unified_norm", arguments, forward, backward)
