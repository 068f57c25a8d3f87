"""What JAX traces once, however many layers call it."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from normjax.core.spmd import division


def traced_once(*static: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator of functions whose operations JAX keeps per types of the arguments.

    The compiled program stays what it was, for the operations are put in the caller's
    place, when it is lowered at the latest. But every layer of a model took them
    through Python again, both ways of a function that has one for CPUs and one for
    accelerators: a decoder is traced in two thirds of the time.

    What `core.spmd.batch_divided` says is part of the key, for kernels ask for it.

    Args:
      static: names of arguments that are no arrays; hashable.
    """

    def decorated(function):
        @functools.cache
        def traced(_):
            # A function of its own, for JAX keeps what it has traced by function.
            return jax.jit(
                functools.wraps(function)(lambda *a, **k: function(*a, **k)),
                static_argnames=static,
                inline=True,
            )

        @functools.wraps(function)
        def called(*arguments, **named):
            return traced(division())(*arguments, **named)

        return called

    return decorated
