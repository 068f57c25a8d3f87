"""A switch between pure functions that costs what the taken branch costs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax


def switch(
    index: jax.Array,
    branches: Sequence[Callable[[Any, Any], tuple[Any, Any]]],
    constants: Any,
    operands: Any,
) -> tuple[Any, Any]:
    """`branches[index](constants, operands) -> (out, aux)`, forward and backward.

    `jax.lax.switch` under autodiff keeps the residuals of every branch, filled with
    zeros for those not taken. Here the operands are the only residuals: the backward
    pass switches again and differentiates the one branch, recomputing it. Meant for
    cheap, memory-bound branches such as norms.

    Under `vmap` over `index` all branches run, as with `jax.lax.switch`.

    Args:
      index: int32 scalar.
      branches: pure functions of one signature; they close over no traced array.
      constants: pytree that gets no gradient (masks, counters, running statistics).
      operands: pytree of floating arrays that are differentiated.

    Returns:
      (out, aux): `out` carries the gradient, `aux` (new state) none.
    """
    return _switch(tuple(branches), index, constants, operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _switch(branches, index, constants, operands):
    return jax.lax.switch(index, branches, constants, operands)


def _forward(branches, index, constants, operands):
    return _switch(branches, index, constants, operands), (index, constants, operands)


def _backward(branches, residuals, cotangents):
    index, constants, operands = residuals
    out_cotangent, _ = cotangents

    def pullback(branch):
        def run(constants, operands, cotangent):
            apply = functools.partial(branch, constants)
            _, vjp, _ = jax.vjp(apply, operands, has_aux=True)
            return vjp(cotangent)[0]

        return run

    pullbacks = [pullback(branch) for branch in branches]
    gradient = jax.lax.switch(index, pullbacks, constants, operands, out_cotangent)
    return None, None, gradient


_switch.defvjp(_forward, _backward)
