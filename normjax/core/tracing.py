"""What JAX traces once, however many layers call it."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def traced_once(*static: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator of functions whose operations JAX keeps per types of the arguments.

    The compiled program stays what it was, for the operations are put in the caller's
    place, when it is lowered at the latest. But every layer of a model took them
    through Python again, both ways of a function that has one for CPUs and one for
    accelerators: a decoder is traced in two thirds of the time.

    Args:
      static: names of arguments that are no arrays; hashable.
    """
    return functools.partial(jax.jit, static_argnames=static, inline=True)
