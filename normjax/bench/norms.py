"""Time of every norm beside those of others, and beside the memory floor."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.bench import peers
from normjax.bench.sizes import Sizes, device_name, sizes_for
from normjax.core.arguments import required_names
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

ROUNDS = 9
LIBRARIES = ("flax", "tokamax", "torch")


def norms_command(argv: Sequence[str]) -> int:
    """`norms [NAME ...]`: all norms that accept the shapes, or those named."""
    chosen, sizes = sizes_for(argv)
    known = [entry.name for entry in norms.NORMS]
    for name in chosen:
        if name not in known:
            raise UserError(one_of("norm", name, known))
    ratios = (f"/ {library}" for library in LIBRARIES)
    columns = ("norm", "forward", "with backward", "/ floor", *ratios)
    for shape in sizes.norms:
        layout = "grid" if len(shape) == 4 else "seq"
        names = [
            entry.name
            for entry in norms.NORMS
            if layout in entry.tags and (entry.name in chosen or not chosen)
        ]
        for dtype in sizes.dtypes:
            rows = measure(names, shape, dtype, sizes)
            what = "ms; floor: reading and writing once"
            title = f"{device_name()}: {list(shape)} {dtype}, {what}"
            report.table(title, columns, rows)
    return 0


def measure(
    names: Sequence[str], shape: tuple[int, ...], dtype: str, sizes: Sizes
) -> list[tuple]:
    """Rows (norm, forward ms, forward and backward ms, ratios of the latter).

    Everything is called in turns; times are medians. The floor is x + 1 of the same
    array: one read and one write.
    """
    rng = np.random.default_rng(0)
    given, cotangent = (rng.standard_normal(shape, np.float32) for _ in range(2))
    x, dy = (jnp.asarray(a, dtype) for a in (given, cotangent))
    copy = jit(lambda x: x + 1)
    rows = []
    for name in names:
        calls: dict[str, Callable] = {"floor": functools.partial(copy, x)}
        calls["forward"], calls["both"] = _ours(name, x, dy)
        for peer in peers.peers_of(peers.NORMS, name):
            calls[peer.library] = peer.make([given], cotangent, dtype)[1]
        seconds = alternate(calls, ROUNDS, sizes.repeats)

        def ratio(other, seconds=seconds):
            return seconds["both"] / seconds[other] if other in seconds else "-"

        milliseconds = (1e3 * seconds["forward"], 1e3 * seconds["both"])
        rows.append((name, *milliseconds, *map(ratio, ("floor", *LIBRARIES))))
    return rows


def _ours(name: str, x: jax.Array, dy: jax.Array) -> peers.Calls:
    """The norm with its defaults; PRepBN in the middle of its decay."""
    required = dict.fromkeys(required_names(norms.NORMS[name].make), 1_000_000)
    module: nn.Module = norms.build(name, **required)(dtype=x.dtype)
    takes_train = "train" in type(module).__call__.__annotations__
    arguments: dict[str, Any] = {"train": True} if takes_train else {}
    return peers.of_module(module, x, dy, **arguments)
