"""Adapters of schedules."""

import jax
import jax.numpy as jnp

from normjax import optim
from normjax.optim.schedules.infinite import infinite_by_steps
from tests.golden_adapters.compare import close
from tests.golden_adapters.optim import optim_runner


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
