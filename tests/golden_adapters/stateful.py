"""Adapters of the norms whose backward pass writes state."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.core.collections import BATCH_STATS, OVERWRITE, PARAMS
from tests.golden_adapters import norm_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.norms import BN, leaf, tree_of

POWER = {"running_phi": "phi", "iters": "step"}
UNIFIED = {
    "running_var": "phi",
    "buffer_x2": "window",
    "iters": "step",
    "skip_counter": "skipped",
}


def mask_of(data, meta, t: int):
    """True where valid, dims in the order of x; the reference marks padding."""
    if f"mask_{t}" not in data:
        return None
    dims = {name: meta["layout"][name].split(",")[0].split() for name in ("x", "mask")}
    order = [dims["mask"].index(d) for d in dims["x"] if d in dims["mask"]]
    given = data[f"mask_{t}"].astype(bool).transpose(order)
    return ~given if "True = padding" in meta["layout"]["mask"] else given


def affine_of(data) -> dict[str, bool]:
    """Which of our parameters the reference has."""
    return {f"use_{ours}": f"param_{name}" in data for name, ours in BN.items()}


def run_steps(data, meta, tolerance, norm, forward, backward):
    """T training steps with parameters held fixed, then one evaluation.

    Args:
      norm: the module.
      forward, backward: reference names of the leaves of `batch_stats` and of
        `_overwrite_with_gradient`, with the names of ours.
    """
    state = {BATCH_STATS: forward, OVERWRITE: backward}

    def as_ours(like, array):
        dtype = tolerance.dtype if like.dtype.kind == "f" else like.dtype
        return jnp.asarray(np.asarray(array).reshape(like.shape), dtype)

    def array(key):
        return jnp.asarray(data[key], tolerance.dtype)

    variables = dict(norm.init(jax.random.key(0), array("x_0"), train=True))
    variables.setdefault(PARAMS, {})
    start = {PARAMS: tree_of(data, "param_", BN)}
    for collection, names in state.items():
        given = tree_of(data, "state0_", names)
        # What the reference does not keep (a counter) starts at its initial value.
        start[collection] = {**variables[collection], **given}
    variables = jax.tree.map(as_ours, variables, start)
    assert len(jax.tree.leaves(start[PARAMS])) == sum(
        k.startswith("param_") for k in data
    ), "a parameter of the reference was left out"

    @jax.jit
    def step(variables, x, dy, mask):
        def apply(params, overwrite, x):
            given = {**variables, PARAMS: params, OVERWRITE: overwrite}
            return norm.apply(given, x, mask=mask, train=True, mutable=[BATCH_STATS])

        inputs = (variables[PARAMS], variables[OVERWRITE], x)
        y, vjp, new = jax.vjp(apply, *inputs, has_aux=True)
        dparams, overwrite, dx = vjp(dy)
        return y, dx, dparams, {**new, OVERWRITE: overwrite}

    for t in range(meta["steps"]):
        mask = mask_of(data, meta, t)
        y, dx, dparams, new = step(variables, array(f"x_{t}"), array(f"dy_{t}"), mask)
        close(f"y_{t}", y, data[f"y_{t}"], tolerance.value)
        close(f"dx_{t}", dx, data[f"dx_{t}"], tolerance.gradient)
        given = {k: data[f"dparam_{k}_{t}"] for k in BN if f"dparam_{k}_{t}" in data}
        largest = max((np.abs(g).max() for g in given.values()), default=0.0)
        for name, expected in given.items():
            ours, limit = leaf(dparams, BN[name]), tolerance.gradient
            close(f"dparam_{name}_{t}", ours, expected, limit, largest)
        for collection, names in state.items():
            for name, path in names.items():
                if f"state_{name}_{t}" not in data:
                    continue
                ours = leaf(new[collection], path)
                expected = data[f"state_{name}_{t}"].reshape(ours.shape)
                close(f"state_{name}_{t}", ours, expected, tolerance.value)
        variables = {**variables, **new}
    y = norm.apply(variables, array("x_eval"), train=False)
    close("y_eval", y, data["y_eval"], tolerance.value)


@norm_runner("powernorm")
def power_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    # The paper's equations: nu counts (1 - decay) in, everything is a running value.
    paper = "state0_nu" in data
    if paper:
        weight = 1 - kwargs["alpha_bkw"]
        data = {k: v / weight if "_nu" in k else v for k, v in data.items()}
    norm = norms.build(
        "power_norm",
        num_groups=kwargs["group_num"],
        warmup_steps=kwargs["warmup_iters"],
        forward_decay=kwargs["alpha_fwd"],
        backward_decay=kwargs["alpha_bkw"],
        backward_scale="running" if paper else "batch",
        epsilon=kwargs["eps"],
        floor=0.0,
        **affine_of(data),
    )()
    run_steps(data, meta, tolerance, norm, POWER, {"nu" if paper else "ema_gz": "nu"})


@norm_runner("un")
def unified_norm(data, meta, tolerance):
    kwargs = meta["kwargs"]
    size = kwargs.get("window_size", 4)
    forward, backward = size if isinstance(size, list) else (size, size)
    norm = norms.build(
        "unified_norm",
        window=forward,
        gradient_window=backward,
        warmup_steps=kwargs["warmup_iters"],
        filter_outliers=kwargs.get("outlier_filtration", False),
        momentum=kwargs["momentum"],
        epsilon=kwargs["eps"],
        **affine_of(data),
    )()
    names = {"buffer_gz": "window", "ema_gz": "nu"}
    run_steps(data, meta, tolerance, norm, UNIFIED, names)
