"""Time of every norm beside flax.linen's and torch's, and beside the memory floor."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax import norms
from normjax.core.arguments import required_names
from normjax.core.collections import OVERWRITE, PARAMS
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.train import report

SHAPES = ((256, 196, 384), (32, 512, 768), (64, 56, 56, 64))
DTYPES = ("float32", "bfloat16")
ROUNDS = 9

FLAX: dict[str, Callable[..., nn.Module]] = {
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "batch_norm": functools.partial(nn.BatchNorm, use_running_average=False),
    "group_norm": nn.GroupNorm,
    "instance_norm": nn.InstanceNorm,
}


def norms_command(argv: Sequence[str]) -> int:
    """`norms [NAME ...]`: all norms that accept the shapes, or those named."""
    known = [entry.name for entry in norms.NORMS]
    for name in argv[1:]:
        if name not in known:
            raise UserError(one_of("norm", name, known))
    for shape in SHAPES:
        layout = "grid" if len(shape) == 4 else "seq"
        names = [
            entry.name
            for entry in norms.NORMS
            if layout in entry.tags and (entry.name in argv[1:] or not argv[1:])
        ]
        for dtype in DTYPES:
            rows = measure(names, shape, jnp.dtype(dtype))
            columns = (
                "norm",
                "forward",
                "with backward",
                "/ floor",
                "/ flax",
                "/ torch",
            )
            title = f"{list(shape)} {dtype}, ms; floor: reading and writing once"
            report.table(title, columns, rows)
    return 0


def measure(names: Sequence[str], shape: tuple[int, ...], dtype: Any) -> list[tuple]:
    """Rows (norm, forward ms, forward and backward ms, ratios of the latter).

    Everything is called in turns; times are medians. The floor is x + 1 of the same
    array: one read and one write.
    """
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    dy = jax.random.normal(jax.random.key(1), shape, dtype)
    copy = jit(lambda x: x + 1)
    rows = []
    for name in names:
        calls: dict[str, Callable] = {"floor": functools.partial(copy, x)}
        forward, both = _calls(_ours(name), x, dy)
        calls["forward"], calls["both"] = forward, both
        if name in FLAX:
            calls["flax"] = _calls(FLAX[name](), x, dy)[1]
        torch_call = _torch_call(name, shape, dtype)
        if torch_call:
            calls["torch"] = torch_call
        seconds = alternate(calls, ROUNDS)

        def ratio(other, seconds=seconds):
            return seconds["both"] / seconds[other] if other in seconds else "-"

        milliseconds = (1e3 * seconds["forward"], 1e3 * seconds["both"])
        rows.append((name, *milliseconds, *map(ratio, ("floor", "flax", "torch"))))
    return rows


def _ours(name: str) -> nn.Module:
    """The norm with its defaults; PRepBN in the middle of its decay."""
    required = dict.fromkeys(required_names(norms.NORMS[name].make), 1_000_000)
    return norms.build(name, **required)()


def _calls(module: nn.Module, x, dy) -> tuple[Callable, Callable]:
    takes_train = "train" in type(module).__call__.__annotations__
    kwargs: dict[str, Any] = {"train": True} if takes_train else {}
    variables = module.init(jax.random.key(2), x, **kwargs)
    trained = {k: v for k, v in variables.items() if k in (PARAMS, OVERWRITE)}
    state = {k: v for k, v in variables.items() if k not in trained}

    def apply(trained, state, x):
        variables = {**trained, **state}
        return module.apply(variables, x, mutable=list(state), **kwargs)

    def both(trained, state, x, dy):
        y, vjp, new = jax.vjp(
            lambda trained, x: apply(trained, state, x), trained, x, has_aux=True
        )
        return y, vjp(dy.astype(y.dtype)), new

    forward = functools.partial(jit(apply), trained, state, x)
    return forward, functools.partial(jit(both), trained, state, x, dy)


def _torch_call(name: str, shape, dtype) -> Callable | None:
    """torch's forward and backward on the CPU, channels where torch wants them."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    channels = shape[-1]
    makers = {
        "layer_norm": lambda: torch.nn.LayerNorm(channels),
        "rms_norm": lambda: torch.nn.RMSNorm(channels),
        "batch_norm": lambda: torch.nn.BatchNorm1d(channels),
        "group_norm": lambda: torch.nn.GroupNorm(32, channels),
        "instance_norm": lambda: torch.nn.InstanceNorm1d(channels, affine=True),
    }
    if name not in makers:
        return None
    last = name in ("layer_norm", "rms_norm")
    flat = (shape[0], -1, channels)
    x = torch.randn(shape, dtype=getattr(torch, str(dtype))).reshape(flat)
    x = (x if last else x.transpose(1, 2).contiguous()).requires_grad_()
    module, dy = makers[name]().to(x.dtype), torch.randn_like(x)

    def call():
        x.grad = None
        module(x).backward(dy)

    return call
