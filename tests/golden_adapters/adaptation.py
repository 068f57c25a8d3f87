"""Adapters of test-time adaptation and of a convolution with its frozen norm."""

import functools

import jax
import jax.numpy as jnp

from normjax import adapt, reparam
from tests.golden_adapters import norm_runner
from tests.golden_adapters.compare import close
from tests.golden_adapters.weights import TIGHT, channels_last, kernel_of


def run_steps(data, meta, tolerance, apply, params, state=()):
    """T forward passes with their gradients, and that at evaluation, if there is one.

    Args:
      apply: function (state, params, x) -> (y, new state).
      params: reference names.  state: reference names of what `apply` moves.
    """
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    given = tuple(cast(data[f"param_{name}"]) for name in params)
    held = tuple(cast(data[f"state0_{name}"]) for name in state)

    @jax.jit
    def step(held, given, x, dy):
        run = functools.partial(apply, held)
        y, vjp, new = jax.vjp(run, given, x, has_aux=True)
        return y, vjp(dy), new

    for t in range(meta["steps"]):
        x, dy = (cast(channels_last(data[f"{k}_{t}"])) for k in ("x", "dy"))
        y, (grads, dx), held = step(held, given, x, dy)
        close(f"y_{t}", y, channels_last(data[f"y_{t}"]), tolerance.value)
        close(f"dx_{t}", dx, channels_last(data[f"dx_{t}"]), tolerance.gradient)
        for name, grad in zip(params, grads, strict=True):
            expected = data[f"dparam_{name}_{t}"]
            close(f"dparam_{name}_{t}", grad, expected, tolerance.gradient)
        for name, value in zip(state, held, strict=True):
            close(
                f"state_{name}_{t}", value, data[f"state_{name}_{t}"], tolerance.value
            )
    if "x_eval" in data:
        y, held = apply(held, given, cast(channels_last(data["x_eval"])))
        close("y_eval", y, channels_last(data["y_eval"]), tolerance.value)
        for name, value in zip(state, held, strict=True):
            expected = data[f"state_after_eval_{name}"]
            close(f"state_after_eval_{name}", value, expected, tolerance.value)


@norm_runner("alphabn")
def alpha_batch_norm(data, meta, tolerance):
    tolerance, kwargs = TIGHT[tolerance.dtype], meta["kwargs"]
    source = [jnp.asarray(data[f"source_running_{k}"]) for k in ("mean", "var")]

    def apply(state, params, x):
        y = adapt.alpha_batch_normalize(
            x,
            *(s.astype(x.dtype) for s in source),
            *params,
            batch_weight=kwargs["weight_of_test_batch"],
            epsilon=kwargs["eps"],
        )
        return y, state

    names = ("layer_weight", "layer_bias")
    run_steps(data, meta, tolerance, apply, names)


@norm_runner("unmixtns")
def unmix_tns(data, meta, tolerance):
    kwargs = meta["kwargs"]

    def apply(state, params, x):
        return adapt.unmix_normalize(
            x,
            *state,
            *params,
            momentum=kwargs["momentum"],
            temperature=kwargs["temperature"],
            epsilon=kwargs["eps"],
        )

    names = ("running_means_mat", "running_vars_mat")
    tight = TIGHT[tolerance.dtype]
    run_steps(data, meta, tight, apply, ("weight", "bias"), names)


@norm_runner("lame")
def lame(data, meta, tolerance):
    tolerance, kwargs = TIGHT[tolerance.dtype], meta["kwargs"]
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    kernel = adapt.affinity(
        cast(data["feats"]),
        kwargs["affinity"].lower(),
        neighbours=kwargs["knn"],
        symmetric=kwargs["force_symmetry"],
    )
    close("kernel", kernel, data["kernel"], tolerance.value)
    for name, steps in (("y_1step", 1), ("y_3steps", 3), ("y", kwargs["max_steps"])):
        y = adapt.laplacian_adjusted(
            cast(data["probas"]), kernel, weight=kwargs["bound_lambda"], max_steps=steps
        )
        close(name, y, data[name], tolerance.value)


@norm_runner("convbn")
def conv_bn(data, meta, tolerance):
    tolerance, kwargs = TIGHT[tolerance.dtype], meta["kwargs"]
    names = [n for n in ("conv_weight", "conv_bias") if f"param_{n}" in data]
    names += ["bn_weight", "bn_bias"]
    of = meta["layout"]["param_conv_weight"]
    data = {
        k: kernel_of(v, of) if "conv_weight" in k or k == "fused_weight" else v
        for k, v in data.items()
    }
    stats = [jnp.asarray(data[f"state0_running_{k}"]) for k in ("mean", "var")]

    def fused(params):
        kernel, *middle, scale, shift = params
        held = (s.astype(kernel.dtype) for s in stats)
        bias = middle[0] if middle else None
        return reparam.tuned_conv_bn(
            kernel, bias, scale, shift, *held, epsilon=kwargs["eps"]
        )

    def apply(state, params, x):
        kernel, bias = fused(params)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (kwargs.get("stride", 1),) * 2,
            [(kwargs["padding"],) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[2],
        )
        return y + bias.reshape(1, 1, 1, -1), state

    run_steps(data, meta, tolerance, apply, names)
    cast = functools.partial(jnp.asarray, dtype=tolerance.dtype)
    kernel, _ = fused([cast(data[f"param_{name}"]) for name in names])
    close("fused_weight", kernel, data["fused_weight"], tolerance.value)
