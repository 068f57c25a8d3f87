"""Functions whose backward pass is written by hand, and forward mode works as well.

`jax.custom_vjp` gives up forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`). Here
the derivative is a linear map of its own, an instruction of JAX that is evaluated as
the derivative of the function and transposed into the backward pass.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir


class custom_backward:
    """`function` with a backward pass of its own; a decorator, as `jax.custom_vjp`.

    Forward mode takes the derivative of `function` itself, and so do derivatives of the
    backward pass, to any order. What is saved for the backward pass should be among the
    arguments, or be small: the arguments are kept until then.

    Args:
      function: (*arguments) -> a tree of arrays.
      nondiff_argnums: of arguments that are no arrays.
    """

    def __init__(
        self, function: Callable[..., Any], nondiff_argnums: Sequence[int] = ()
    ):
        self._function, self._static = function, tuple(nondiff_argnums)
        self._call = jax.custom_jvp(function, nondiff_argnums=self._static)
        self._call.defjvp(self._derivative)
        functools.update_wrapper(self, function)

    def defvjp(
        self, forward: Callable[..., Any], backward: Callable[..., tuple[Any, ...]]
    ) -> None:
        """The rule, as of `jax.custom_vjp`.

        Args:
          forward: (*arguments) -> (result, what is saved).
          backward: (*arguments of nondiff_argnums, saved, cotangent of the result) ->
            cotangents of the other arguments, in order; None for zero.
        """
        self._forward, self._backward = forward, backward

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def _derivative(self, *arguments: Any) -> tuple[Any, Any]:
        *static, primals, tangents = arguments
        whole = dict(zip(self._static, static, strict=True))

        def with_static(function, primals):
            """`function` of all arguments in their places."""
            rest = iter(primals)
            places = range(len(whole) + len(primals))
            return function(*(whole[i] if i in whole else next(rest) for i in places))

        y, saved = with_static(self._forward, primals)
        kept = [*jax.tree.leaves(primals), *jax.tree.leaves(saved)]
        residuals, places = _distinct(kept)
        linear = _Linear(
            function=functools.partial(with_static, self._function),
            backward=functools.partial(self._backward, *static),
            primals=_Tree(primals),
            saved=_Tree(saved),
            result=_Tree(y),
            places=places,
        )
        results = linear.result.floating(jax.tree.leaves(y))
        found = _linear_p.bind(
            *residuals,
            *linear.primals.floating(jax.tree.leaves(tangents)),
            count=len(residuals),
            forward=linear.forward,
            adjoint=linear.adjoint,
            avals=tuple(map(jax.typeof, results)),
        )
        return y, linear.result.along(found)


def _distinct(arrays: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Each array once, and where each is in that list."""
    numbers: dict[int, int] = {}
    places = tuple(numbers.setdefault(id(x), len(numbers)) for x in arrays)
    kept = dict(zip(places, arrays, strict=True))
    return [kept[i] for i in range(len(numbers))], places


class _Tree:
    """The structure of a tree of arrays, some of whose leaves are floating."""

    def __init__(self, tree: Any):
        leaves, self._structure = jax.tree.flatten(tree)
        types = map(jnp.result_type, leaves)
        self._floating = [jnp.issubdtype(t, jnp.inexact) for t in types]
        self._shapes = [jnp.shape(x) for x in leaves]

    def __len__(self) -> int:
        return len(self._floating)

    def floating(self, leaves: Sequence[Any]) -> list[Any]:
        """Those of the leaves."""
        return [x for x, f in zip(leaves, self._floating, strict=True) if f]

    def of(self, leaves: Sequence[Any]) -> Any:
        """The tree with these leaves."""
        return jax.tree.unflatten(self._structure, leaves)

    def along(self, floating: Sequence[Any]) -> Any:
        """The tree of tangents; of leaves that are not floating they have no values."""
        rest = iter(floating)
        return self.of(
            [
                next(rest) if f else np.zeros(shape, jax.dtypes.float0)
                for f, shape in zip(self._floating, self._shapes, strict=True)
            ]
        )


class _Linear(NamedTuple):
    """A derivative at residuals, of which `places` say where primals and saved are."""

    function: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]
    primals: _Tree
    saved: _Tree
    result: _Tree
    places: tuple[int, ...]

    def forward(self, residuals: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        primals, _ = self._parts(residuals)
        along = self.primals.along(tangents)
        _, out = jax.jvp(lambda *p: self.function(p), primals, along)
        return self.result.floating(jax.tree.leaves(out))

    def adjoint(self, residuals: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        primals, saved = self._parts(residuals)
        found = self.backward(saved, self.result.along(cotangents))
        leaves = []
        for primal, cotangent in zip(primals, found, strict=True):
            if cotangent is None:
                cotangent = jax.tree.map(jnp.zeros_like, primal)
            leaves += jax.tree.leaves(cotangent)
        return self.primals.floating(leaves)

    def _parts(self, residuals: Sequence[Any]) -> tuple[Any, Any]:
        leaves = [residuals[i] for i in self.places]
        count = len(self.primals)
        return self.primals.of(leaves[:count]), self.saved.of(leaves[count:])


_linear_p = core.Primitive("linear_with_backward")
_linear_p.multiple_results = True


def _evaluate(*operands, count, forward, adjoint, avals):
    del adjoint, avals
    return forward(operands[:count], operands[count:])


def _jvp(primals, tangents, **parameters):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(functools.partial(_evaluate, **parameters), primals, tangents)


def _transpose(cotangents, *operands, count, forward, adjoint, avals):
    del forward, avals
    if all(isinstance(t, ad.Zero) for t in cotangents):
        return [None] * len(operands)
    cotangents = list(map(ad.instantiate_zeros, cotangents))
    found = adjoint(operands[:count], cotangents)
    linear = map(ad.is_undefined_primal, operands[count:])
    wanted = [t if is_l else None for t, is_l in zip(found, linear, strict=True)]
    return [None] * count + wanted


def _batch(operands, dims, *, count, forward, adjoint, avals):
    del avals
    pairs = list(zip(operands, dims, strict=True))
    size = next(x.shape[d] for x, d in pairs if d is not None)
    residuals = list(operands[:count])
    linear = [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in pairs[count:]
    ]

    def mapped(function):
        over = jax.vmap(function, in_axes=(list(dims[:count]), 0), axis_size=size)
        return lambda residuals, linear: over(list(residuals), list(linear))

    forward = mapped(forward)
    out = _linear_p.bind(
        *residuals,
        *linear,
        count=count,
        forward=forward,
        adjoint=mapped(adjoint),
        avals=tuple(jax.make_jaxpr(forward)(residuals, linear).out_avals),
    )
    return out, [0] * len(out)


_linear_p.def_impl(_evaluate)
_linear_p.def_abstract_eval(lambda *_, avals, **__: list(avals))
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=True))
