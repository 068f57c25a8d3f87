"""Time and memory of token mixers against the number of tokens."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers
from normjax.core.arguments import field_names, required_names
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

SIDES = (14, 32, 64, 128)
WIDTH, HEADS = 192, 3
ROUNDS = 5
MOST_BYTES = 4 * 2**30


def mixers_command(argv: Sequence[str]) -> int:
    """`mixers [NAME ...]`: forward, float32, one example of width 192."""
    names = argv[1:] or [entry.name for entry in mixers.MIXERS]
    known = [entry.name for entry in mixers.MIXERS]
    for name in names:
        if name not in known:
            raise UserError(one_of("mixer", name, known))
    rows = [row for name in names if (row := measure(name))]
    tokens = [f"{side * side:,}" for side in SIDES]
    columns = ("mixer", *(f"ms {n}" for n in tokens), *(f"MiB {n}" for n in tokens))
    title = f"{WIDTH} channels, {HEADS} heads, float32; time and temporary memory"
    report.table(title, (*columns, "slope from 1,024"), rows)
    return 0


def measure(name: str) -> tuple | None:
    """(name, ms by tokens, MiB by tokens, log-log slope of the time).

    A size that takes more than 4 GiB, or that the mixer refuses, is left out.
    """
    entry = mixers.MIXERS[name]
    given = {"num_heads": HEADS, "layer": 0, "num_layers": 2}
    allowed = field_names(entry.make)
    arguments = {k: v for k, v in given.items() if k in allowed}
    if set(required_names(entry.make)) - set(arguments):
        return None
    module = mixers.build(name, **arguments)()
    calls, bytes_taken = {}, {}
    for side in SIDES:
        shape = (side, side) if "grid" in entry.tags else (side * side,)
        call = _call(module, (1, *shape, WIDTH))
        if call is not None and call[1] <= MOST_BYTES:
            calls[side], bytes_taken[side] = call
    seconds = alternate(calls, ROUNDS)
    if not seconds:
        return None
    cells = [1e3 * seconds[s] if s in seconds else "-" for s in SIDES]
    cells += [bytes_taken[s] / 2**20 if s in seconds else "-" for s in SIDES]
    long = [s for s in SIDES[1:] if s in seconds]
    slope: Any = "-"
    if len(long) > 1:
        tokens, times = [s * s for s in long], [seconds[s] for s in long]
        slope = float(np.polyfit(np.log(tokens), np.log(times), 1)[0])
    return (name, *cells, slope)


def _call(module, shape) -> tuple[Any, int] | None:
    """The compiled forward pass with its input, and its temporary bytes."""
    x = jax.random.normal(jax.random.key(0), shape)
    try:
        variables = jax.jit(module.init)(jax.random.key(1), x)
    except UserError:
        return None
    compiled = jit(module.apply).lower(variables, jnp.asarray(x)).compile()
    analysis = compiled.memory_analysis()
    size = int(getattr(analysis, "temp_size_in_bytes", 0) or 0)
    return functools.partial(compiled, variables, x), size
