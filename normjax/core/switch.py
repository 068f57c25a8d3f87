"""A switch between pure functions that costs what the taken branch costs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from normjax.core.backward import custom_backward


def switch(
    index: jax.Array | int,
    branches: Sequence[Callable[[Any, Any], tuple[Any, Any]]],
    constants: Any,
    operands: Any,
) -> tuple[Any, Any]:
    """`branches[index](constants, operands) -> (out, aux)`, forward and backward.

    `jax.lax.switch` under autodiff keeps the residuals of every branch, filled with
    zeros for those not taken. Here the operands are the only residuals: the backward
    pass switches again and differentiates the one branch, recomputing it. Meant for
    cheap, memory-bound branches such as norms.

    Branches are traced here, once: the backward pass knows nothing of the contexts of
    the call, such as interceptors of modules. Under `vmap` over `index` all branches
    run, as with `jax.lax.switch`.

    Args:
      index: int32 scalar; where it is a number of Python, that branch alone is there,
        as if it had been called, its backward pass too.
      branches: pure functions of one signature; what they close over gets no gradient.
      constants: pytree that gets no gradient (masks, counters, running statistics).
      operands: pytree of floating arrays that are differentiated.

    Returns:
      (out, aux): `out` carries the gradient, `aux` (new state) none.
    """
    if isinstance(index, int):
        out, aux = branches[index](jax.lax.stop_gradient(constants), operands)
        return out, jax.lax.stop_gradient(aux)
    traced = [_Traced(branch, constants, operands) for branch in branches]
    closed_over = [branch.constants for branch in traced]
    return _switch(tuple(traced), index, (constants, closed_over), operands)


class _Traced:
    """A branch as its jaxpr: the i-th of those whose constants come first."""

    def __init__(self, branch, constants, operands):
        closed, shapes = jax.make_jaxpr(branch, return_shape=True)(constants, operands)
        self.constants = closed.consts
        self._jaxpr, self._result = closed.jaxpr, jax.tree.structure(shapes)

    def __call__(self, place, constants, operands):
        constants, closed_over = constants
        closed = core.ClosedJaxpr(self._jaxpr, closed_over[place])
        leaves = jax.tree.leaves((constants, operands))
        return jax.tree.unflatten(self._result, core.jaxpr_as_fun(closed)(*leaves))


def _runs(branches):
    return [functools.partial(branch, i) for i, branch in enumerate(branches)]


@functools.partial(custom_backward, nondiff_argnums=(0,))
def _switch(branches, index, constants, operands):
    constants = jax.lax.stop_gradient(constants)
    out, aux = jax.lax.switch(index, _runs(branches), constants, operands)
    return out, jax.lax.stop_gradient(aux)


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

    pullbacks = [pullback(run) for run in _runs(branches)]
    gradient = jax.lax.switch(index, pullbacks, constants, operands, out_cotangent)
    return None, None, gradient


_switch.defvjp(_forward, _backward)
