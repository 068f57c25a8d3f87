"""What sequence mixers do with queries, keys and values, at many lengths."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.bench import peers
from normjax.bench.sizes import Sizes, device_name, sizes_for
from normjax.core.errors import UserError, one_of
from normjax.core.operations import inner_jaxprs
from normjax.core.timing import alternate
from normjax.mixers import decay, linear_attention, softmax_attention
from normjax.records import report

HEADS, WIDTH = 8, 64
ROUNDS = 5
MOST_BYTES = 16 * 2**30


def _softmax(causal: bool) -> Callable:
    return lambda q, k, v: softmax_attention(q, k, v, causal=causal)


def _decayed(q, k, v, log_decay):
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    return decay.chunked(q, k, v, log_decay)[0].astype(q.dtype)


CORES: dict[str, Callable] = {
    "softmax": _softmax(False),
    "softmax, causal": _softmax(True),
    "linear": lambda q, k, v: linear_attention(q, k, v).astype(q.dtype),
    "linear, causal": lambda q, k, v: decay.causal_linear_attention(q, k, v).astype(
        q.dtype
    ),
    "decay per head": _decayed,
    "decay per channel": _decayed,
}


def cores_command(argv: Sequence[str]) -> int:
    """`cores [NAME ...]`: ms and ratios to the library that has the same.

    All lengths have the same number of tokens: short sequences are many.
    """
    names, sizes = sizes_for(argv)
    for name in names:
        if name not in CORES:
            raise UserError(one_of("core", name, CORES))
    columns = ("core", "tokens", "forward", "with backward", "beside", "its forward")
    columns = (*columns, "its backward", "ratio", "ratio, backward", "difference")
    title = f"{device_name()}: {sizes.tokens:,} tokens, {HEADS} heads of {WIDTH}, "
    for name in names or CORES:
        rows = [measure(name, length, sizes) for length in sizes.lengths]
        report.table(f"{title}{sizes.dtype}, ms", columns, rows)
    return 0


def measure(name: str, length: int, sizes: Sizes) -> tuple:
    """A row of the table; "-" for what takes more than 16 GiB, or is not there."""
    inputs = inputs_of(name, length, sizes.tokens)
    dy = np.random.default_rng(1).standard_normal(inputs[0].shape, np.float32)
    calls: dict[Any, Callable] = {}
    ours = peers.of_jax(CORES[name], inputs, dy, sizes.dtype)
    for kind, call in zip(("forward", "both"), ours, strict=True):
        if fits(call):
            calls["ours", kind] = call
    beside = peers.peers_of(peers.CORES, name)[:1]
    for peer in beside:
        made = peer.make(inputs, dy, sizes.dtype)
        calls["peer", "forward"], calls["peer", "both"] = made
    seconds = alternate(calls, ROUNDS, sizes.repeats)

    def cell(way, kind):
        return 1e3 * seconds[way, kind] if (way, kind) in seconds else "-"

    def ratio(kind):
        if not {("ours", kind), ("peer", kind)} <= seconds.keys():
            return "-"
        return seconds["ours", kind] / seconds["peer", kind]

    kinds = ("forward", "both")
    library = beside[0].library if beside else "-"
    cells = [cell(way, kind) for way in ("ours", "peer") for kind in kinds]
    own, other = cells[:2], cells[2:]
    return (
        name,
        f"{length:,}",
        *own,
        library,
        *other,
        *map(ratio, kinds),
        difference(calls),
    )


def inputs_of(name: str, length: int, tokens: int) -> list[np.ndarray]:
    """q, k, v [B, L, H, K] and, perhaps, log decays; keys of unit length."""
    rng = np.random.default_rng(0)
    shape = (max(tokens // length, 1), length, HEADS, WIDTH)
    q, k, v = (rng.standard_normal(shape, np.float32) for _ in range(3))
    if name.startswith("linear"):
        q, k = np.maximum(q, 0), np.maximum(k, 0)
    k /= np.linalg.norm(k, axis=-1, keepdims=True) + 1e-6
    if not name.startswith("decay"):
        return [q, k, v]
    shape = shape if name.endswith("channel") else shape[:-1]
    raw = rng.standard_normal(shape, np.float32)
    return [q, k, v, -np.log1p(np.exp(-raw)) / 16]


def fits(call: Any) -> bool:
    """Whether the program of a call of ours takes at most 16 GiB for itself."""
    traced = call.func.trace(*call.args)
    if largest(traced.jaxpr.jaxpr) > MOST_BYTES:  # compiling alone would take as much
        return False
    analysis = traced.lower().compile().memory_analysis()
    return int(getattr(analysis, "temp_size_in_bytes", 0) or 0) <= MOST_BYTES


def largest(jaxpr: Any) -> int:
    """Bytes of the largest array that is computed."""
    found = [v.aval.size * v.aval.dtype.itemsize for e in jaxpr.eqns for v in e.outvars]
    inner = [largest(j) for e in jaxpr.eqns for j in inner_jaxprs(e.params)]
    return max([0, *found, *inner])


def difference(calls: dict[Any, Callable]) -> Any:
    """|ours - theirs| / |theirs| of the forward passes, or "-"."""
    pair = [calls.get((way, "forward")) for way in ("ours", "peer")]
    if None in pair:
        return "-"
    ours, theirs = (call() for call in pair if call is not None)
    ours = np.asarray(jnp.asarray(jax.block_until_ready(ours), jnp.float32))
    theirs = np.asarray(theirs.block_until_ready())
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
