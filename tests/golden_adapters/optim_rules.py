"""Adapters of scaling by batch, and of training rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import optim
from tests.golden_adapters.compare import close
from tests.golden_adapters.optim import optim_runner, run_trajectory


@optim_runner("lrbatch")
def rates_by_batch(data, meta, tolerance):
    kwargs = meta["kwargs"]
    for kind in ("sgd", "adam"):
        found = optim.batch_scaled_rate(
            kwargs["base_lr"], kwargs["base_batch"], data["batch"], optimizer=kind
        )
        close(kind, found, data[kind], tolerance.value)


@optim_runner("adadagrad")
def adadagrad(data, meta, tolerance):
    kwargs = meta["kwargs"]
    if "required" in data:
        return growth(data, kwargs)
    if "result_norm" in data:
        return batch_tests(data, kwargs, tolerance)
    optimizer = optim.optimizers.adagrad_unit_norm(
        kwargs["lr"], initial=kwargs["initial_accumulator_value"], weight_decay=0.0
    )
    return run_trajectory(optimizer, data, meta, tolerance)


def growth(data, kwargs):
    plans = np.stack([data[k] for k in ("micro", "accumulation", "global_batch")], 1)
    plan = optim.BatchPlan(*map(int, plans[0]))
    for required, expected in zip(data["required"], plans[1:], strict=True):
        plan = optim.grown_plan(
            plan,
            float(required),
            workers=kwargs["world_size"],
            largest_micro=kwargs["max_micro_batch"],
            largest=kwargs["max_batch"],
        )
        assert tuple(plan) == tuple(expected), (plan, expected)


def batch_tests(data, kwargs, tolerance):
    gradients = {
        key: jnp.asarray(data[key], tolerance.dtype)
        for key in data
        if key.startswith("g_")
    }
    samples, shards = len(next(iter(gradients.values()))), kwargs["shards"]
    apart = {"joint": False}

    def measured(kind, k):
        if kind == "norm":
            return [optim.norm_test(gradients, kwargs["eta"], shards=k)]
        inner = optim.inner_product_test(gradients, kwargs["theta"], shards=k, **apart)
        across = optim.orthogonality_test(gradients, kwargs["nu"], shards=k, **apart)
        tests = {"inner_product": [inner], "orthogonality": [across]}
        return tests.get(kind, [inner, across])

    for key in data:
        if not key.startswith("result_"):
            continue
        kind = key.removeprefix("result_")
        k = shards if kind.endswith(("_accumulated", "_distributed")) else 1
        kind = kind.removesuffix("_accumulated").removesuffix("_distributed")
        tests = measured(kind, k)
        required = max(float(test.required) for test in tests)
        new = optim.grown_batch(samples, required, 10**9)
        found = [new, *(t.variance for t in tests), tests[0].square]
        close(key, np.array(found, float), data[key], tolerance.value)
    joint = optim.inner_product_test(gradients).variance
    expected = data["joint_inner_product_variance"]
    close("joint inner product", joint, expected, tolerance.value)
    joint = optim.orthogonality_test(gradients).variance
    expected = data["joint_orthogonal_variance"]
    close("joint orthogonality", joint, expected, tolerance.value)


@optim_runner("normalizedlr")
def logistic(data, meta, tolerance):
    kwargs = meta["kwargs"]
    a, y = (jnp.asarray(data[k], tolerance.dtype) for k in "ay")

    def descent(theta, normalized):
        gradient = optim.logistic_gradient(theta, a, y, normalized=normalized)
        return theta - kwargs["step_size"] * gradient

    def perceptron(theta, normalized):
        return optim.perceptron_step(theta, a, y, normalized=normalized)

    for name, make in (("gd", descent), ("batch_perceptron", perceptron)):
        for normalized in (False, True):
            key = f"theta_{'normalized_' if normalized else ''}{name}"
            step, theta = (
                jax.jit(functools.partial(make, normalized=normalized)),
                0 * a[0],
            )
            for t, expected in enumerate(data[key]):
                close(f"{key} {t}", theta, expected, tolerance.value)
                theta = step(theta)


@optim_runner("sam")
def sharpness_aware(data, meta, tolerance):
    kwargs = meta["kwargs"]
    order = np.argsort(data.get("shard", np.zeros(len(data["x"]))), kind="stable")
    x, labels = jnp.asarray(data["x"][order], tolerance.dtype), data["labels"][order]
    names = [key.removeprefix("p_") for key in data if key.startswith("p_")]

    def loss(params, batch):
        x, labels = batch
        hidden = jnp.tanh(x @ params["w1"].T + params["b1"][None])
        logits = hidden @ params["w2"].T + params["b2"][None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        squares = sum(jnp.sum(p * p) for p in params.values())
        return jnp.mean(losses) + 0.5 * kwargs["l2"] * squares

    parts, clip = kwargs.get("shards", 1), kwargs.get("gradient_clip")
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    optimizer = optax.chain(*chain, optax.sgd(kwargs["lr"], kwargs["momentum"]))

    @jax.jit
    def step(params, state):
        gradient = jax.grad(loss)
        found = optim.sharpness_aware_gradient(
            gradient, params, (x, labels), rho=kwargs["rho"], parts=parts
        )
        first = gradient(params, (x, labels))
        updates, state = optimizer.update(found, state, params)
        return first, found, optax.apply_updates(params, updates), state

    params = {n: jnp.asarray(data[f"p_{n}"][0], tolerance.dtype) for n in names}
    state = optimizer.init(params)
    for t in range(meta["steps"]):
        if "loss" in data:
            value = loss(params, (x, labels))
            close(f"loss {t}", value, data["loss"][t], tolerance.value)
        first, found, params, state = step(params, state)
        for n in names:
            for key, tree in (("grad", first), ("perturbed_grad", found)):
                if f"{key}_{n}" in data:
                    expected = data[f"{key}_{n}"][t]
                    close(f"{key}_{n} {t}", tree[n], expected, tolerance.value)
            close(f"{n} {t + 1}", params[n], data[f"p_{n}"][t + 1], tolerance.value)
