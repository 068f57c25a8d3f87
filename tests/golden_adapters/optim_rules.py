"""Adapters of schedules, of scaling by width and batch, and of training rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import activations, optim
from normjax.optim.schedules.infinite import infinite_by_steps
from tests.golden_adapters.compare import close
from tests.golden_adapters.optim import optim_runner, run_trajectory


def compare_rates(name, schedule, data, tolerance):
    found = jax.vmap(schedule)(jnp.asarray(data["step"]))
    close(name, found, data[name], tolerance.value)


@optim_runner("schedule")
def schedule(data, meta, tolerance):
    kwargs = meta["kwargs"]
    kinds = {
        "a": power,
        "cooldown_steps": infinite,
        "repeats": rewarmed,
        "stable_steps": stable,
    }
    made = next(make for key, make in kinds.items() if key in kwargs)(kwargs)
    names = [name for name in data if name == "lr" or name.startswith("lr_")]
    for name in names:
        compare_rates(name, made(name.removeprefix("lr_")), data, tolerance)


def power(kwargs):
    per_step = kwargs["batch_size"] * kwargs["sequence_length"]
    total = kwargs.get("total_tokens", 10**9 * per_step) // per_step
    decay = kwargs.get("decay_tokens", 0) // per_step

    def made(tail):
        tail = "linear" if tail == "lr" else tail
        return optim.schedules.power(
            total,
            lr=kwargs["lr_max"],
            warmup_fraction=kwargs["warmup_steps"] / total,
            amplitude=kwargs["a"],
            exponent=kwargs["b"],
            batch_size=kwargs["batch_size"],
            sequence_length=kwargs["sequence_length"],
            decay_fraction=decay / total,
            tail=tail,
            tail_fraction=kwargs["final_fraction"] if tail == "exponential" else 0.0,
        )

    return made


def infinite(kwargs):
    cooldowns = {
        "cosine_cooldown_infinite": "cosine",
        "inverse_sqrt_infinite": "inverse_sqrt",
        "constant_infinite": "linear",
    }
    warmup = kwargs["warmup_steps"]

    def made(name):
        return infinite_by_steps(
            peak=kwargs["peak"],
            constant=kwargs["constant"],
            end=kwargs["end"],
            warmup_steps=warmup,
            cooldown_steps=kwargs["cooldown_steps"],
            annealing_from=warmup + kwargs["cooldown_plus_constant_steps"],
            total_steps=kwargs["total_steps"],
            cooldown=cooldowns[name],
            timescale=kwargs["alpha"],
        )

    return made


def rewarmed(kwargs):
    total = kwargs["total_steps"]
    return lambda name: optim.schedules.rewarmed_cosine(
        total,
        lr=kwargs["peak"],
        warmup_fraction=kwargs["warmup_steps"] / total,
        repeats=kwargs["repeats"],
        final_lr_fraction=kwargs["end"] / kwargs["peak"],
    )


def stable(kwargs):
    parts = [kwargs[f"{name}_steps"] for name in ("warmup", "stable", "decay")]
    total, tails = sum(parts), {"1_sqrt": "one_minus_sqrt"}
    return lambda tail: optim.schedules.wsd(
        total,
        lr=1.0,
        warmup_fraction=parts[0] / total,
        decay_fraction=parts[2] / total,
        tail=tails.get(tail, tail),
        warmup_from_final=True,
        final_lr_fraction=kwargs["min_lr_ratio"],
    )


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
