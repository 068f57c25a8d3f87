"""The elementwise linear recurrence, whose gradients are the same from the end.

    h_t = a_t h_{t-1} + b_t        dL/db_t = g_t = dL/dh_t + a_{t+1} g_{t+1}

One primitive for each direction: the derivative of a scan over pairs goes through every
of its log2(L) levels, that of a primitive is the other one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching

from normjax.core.spmd import match_varying, over_batch
from normjax.kernels.choice import lower_by_platform


def recurrence(a: jax.Array, b: jax.Array, state: jax.Array | None) -> jax.Array:
    """h_t = a_t h_{t-1} + b_t, a TPU does it by a kernel.

    Args:
      a, b: [B, L, D].  state: [B, D], h before the first position; None for zeros.

    Returns:
      [B, L, D] in the type of a and b together.
    """
    dtype = jnp.result_type(a, b)
    if state is None:
        state = jnp.zeros_like(b[:, 0])
    given = tuple(t.astype(dtype) for t in (a, b, state))
    return over_batch(_bound(_forward_p), given)


def _bound(primitive):
    return lambda *arrays: primitive.bind(*match_varying(*arrays))


def _forward(a, b, state):
    return _pairs(a, b.at[:, 0].add(a[:, 0] * state), False)


def _backward(a, b):
    return _pairs(jnp.concatenate((a[:, 1:], jnp.zeros_like(a[:, :1])), 1), b, True)


def _pairs(a, b, reverse: bool):
    def joined(first, second):
        (a, b), (c, d) = first, second
        return a * c, b * c + d

    return jax.lax.associative_scan(joined, (a, b), axis=1, reverse=reverse)[1]


def _kernel(reverse: bool, function, a, b, *state):
    # Here, for Pallas takes longer to import than all mixers.
    from normjax.kernels.elementwise_recurrence import elementwise_recurrence, fits

    if not fits(a):
        return function(a, b, *state)
    state = state[0] if state else jnp.zeros_like(a[:, 0])
    return elementwise_recurrence(a, b, state, reverse=reverse)


def _forward_jvp(primals, tangents):
    a, _, state = primals
    h = _bound(_forward_p)(*primals)
    da, db, dstate = map(ad.instantiate_zeros, tangents)
    if not isinstance(tangents[0], ad.Zero):
        db += da * jnp.concatenate((state[:, None], h[:, :-1]), 1)
    return h, _bound(_forward_p)(a, db, dstate)


def _backward_jvp(primals, tangents):
    a, _ = primals
    g = _bound(_backward_p)(*primals)
    da, db = map(ad.instantiate_zeros, tangents)
    if not isinstance(tangents[0], ad.Zero):
        behind = (da * g)[:, 1:]
        db += jnp.concatenate((behind, jnp.zeros_like(g[:, :1])), 1)
    return g, _bound(_backward_p)(a, db)


def _forward_transposed(cotangent, a, b, state):
    g = _bound(_backward_p)(a, ad.instantiate_zeros(cotangent))
    wanted = map(ad.is_undefined_primal, (b, state))
    found = zip(wanted, (g, a[:, 0] * g[:, 0]), strict=True)
    return [None, *(each if asked else None for asked, each in found)]


def _backward_transposed(cotangent, a, b):
    del b
    cotangent = ad.instantiate_zeros(cotangent)
    return [None, _bound(_forward_p)(a, cotangent, jnp.zeros_like(a[:, 0]))]


def _made(name: str, function: Any, reverse: bool, jvp: Any, transposed: Any):
    def mapped(arrays, axes):
        return jax.vmap(function, axes)(*arrays), 0

    primitive = core.Primitive(name)
    primitive.def_impl(jax.jit(lambda *arrays: primitive.bind(*arrays)))
    primitive.def_abstract_eval(lambda a, b, *_: b)
    lower_by_platform(
        primitive, function, functools.partial(_kernel, reverse, function)
    )
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = mapped
    return primitive


_forward_p = _made("recurrence", _forward, False, _forward_jvp, _forward_transposed)
_backward_p = _made(
    "recurrence_from_the_end", _backward, True, _backward_jvp, _backward_transposed
)
