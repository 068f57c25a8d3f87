"""Adapters of activations that are replaced in stages."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import activations, optim
from tests.golden_adapters.compare import close
from tests.golden_adapters.optim import optim_runner


@optim_runner("prosparse")
def prosparse(data, meta, tolerance):
    kwargs = meta["kwargs"]
    if "factor" in data:
        found = jax.vmap(
            lambda step: optim.prosparse_factor(
                step,
                start=kwargs["relu_only_until"],
                ends=kwargs["accumulated_steps"],
                peaks=kwargs["peaks"],
            )
        )(jnp.asarray(data["step"]))
        return close("factor", found, data["factor"], tolerance.value)
    return gated(data, kwargs, tolerance)


def gated(data, kwargs, tolerance):
    typed = {k: jnp.asarray(v, tolerance.dtype) for k, v in data.items()}
    params = {k: typed[f"param_{k}"] for k in ("gate", "up", "down")}
    for kind in ("relu", "fatrelu"):
        threshold = kwargs["threshold"] if kind == "fatrelu" else None

        def forward(x, params, threshold=threshold):
            gate = x @ params["gate"].T
            if threshold is None:
                gate = jax.nn.relu(gate)
            else:
                gate = activations.fatrelu(gate, threshold)
            hidden = gate * (x @ params["up"].T)
            y, penalty = hidden @ params["down"].T, optim.sparsity_penalty(hidden)
            loss = jnp.sum(y * typed["dy"]) + kwargs["factor"] * penalty
            return loss, (y, penalty, jnp.mean(hidden == 0, dtype=x.dtype))

        run = jax.jit(jax.grad(forward, argnums=(0, 1), has_aux=True))
        (dx, dparams), values = run(typed["x"], params)
        found = dict(zip(("y", "l1", "sparsity"), values, strict=True)) | {"dx": dx}
        found |= {f"dparam_{k}": v for k, v in dparams.items()}
        for key, value in found.items():
            close(f"{key}_{kind}", value, data[f"{key}_{kind}"], tolerance.gradient)
    for name, inclusive in (("inclusive", True), ("exclusive", False)):
        found = activations.fatrelu(
            typed["edge_x"], kwargs["threshold"], inclusive=inclusive
        )
        close(f"edge {name}", found, data[f"edge_y_{name}"], tolerance.value)


@optim_runner("autorep")
def autorep(data, meta, tolerance):
    if "mean" in data:
        return polynomials(data, tolerance)
    return relays(data, meta, tolerance)


def polynomials(data, tolerance):
    mean, std = (jnp.asarray(data[k], tolerance.dtype) for k in ("mean", "std"))
    for degree in (1, 2):
        for prefix in ("", "published_"):
            found = activations.relu_polynomial(
                mean, std, degree=degree, as_published=bool(prefix)
            )
            key = f"{prefix}degree{degree}"
            close(key, found, data[key], tolerance.value)


def relays(data, meta, tolerance):
    kwargs = meta["kwargs"]

    def last(a):
        return jnp.asarray(np.moveaxis(a, -3, -1), tolerance.dtype)

    state = activations.RelayState.start(
        last(data["alpha_1"]), jnp.asarray(data["poly_0"], tolerance.dtype)
    )

    @jax.jit
    def step(state, x, alpha, dy):
        state = activations.relay_state(
            state,
            alpha,
            x,
            train=True,
            threshold=kwargs["threshold"],
            clip_square=kwargs["clip_x2"],
            degree=kwargs["degree"],
            var_min=kwargs["var_min"],
            as_published=True,
        )

        def forward(x, alpha, polynomial):
            return activations.relay(
                x, alpha, polynomial, state.mask, scale_square=kwargs["scale_x2"]
            )

        y, vjp = jax.vjp(forward, x, alpha, state.polynomial)
        return state, y, vjp(dy)

    for t in range(1, meta["steps"] + 1):
        x, alpha, dy = (last(data[f"{k}_{t}"]) for k in ("x", "alpha", "dy"))
        state, y, (dx, dalpha, dpoly) = step(state, x, alpha, dy)
        maps = {"y": y, "dx": dx, "dalpha": dalpha, "mask": state.mask}
        found = {k: np.moveaxis(np.asarray(v), -1, -3) for k, v in maps.items()}
        found |= {"running_mean": state.mean, "running_var": state.var}
        found |= {"dpoly": dpoly, "poly": state.polynomial}
        for key, value in found.items():
            close(f"{key} {t}", value, data[f"{key}_{t}"], tolerance.gradient)

    def penalty(alpha):
        return activations.relu_budget_penalty(
            alpha, state.mask, kwargs["relu_budget"], kwargs["penalty"]
        )

    value, slope = jax.value_and_grad(penalty)(alpha)
    close("penalty", value, data["penalty"], tolerance.value)
    slope = np.moveaxis(np.asarray(slope), -1, -3)
    close("penalty_dalpha", slope, data["penalty_dalpha"], tolerance.value)
