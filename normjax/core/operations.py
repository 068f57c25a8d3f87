"""What a function computes, counted from its trace: nothing is compiled."""

import math
from collections.abc import Callable
from typing import Any

import jax


def multiply_adds(function: Callable, *args: Any) -> int:
    """Multiply-adds of the matrix products and convolutions that a call makes.

    Elementwise work is not counted, as in published tables. Where the platform or a
    condition decides, the costliest branch counts. Nothing is computed.

    Args:
      function: traced with `args`, arrays or `jax.ShapeDtypeStruct`.
    """
    return traced_multiply_adds(jax.make_jaxpr(function)(*args).jaxpr)


def traced_multiply_adds(jaxpr: Any) -> int:
    """`multiply_adds` of what is traced already."""
    return sum(multiply_adds_of(equation) for equation in jaxpr.eqns)


def operations(function: Callable, *args: Any) -> int:
    """Arithmetic operations of a call as XLA counts them, elementwise ones included.

    A multiply-add is two; roots, exponentials and other transcendental functions are
    not counted. Counted before XLA optimises: without fusion and the like.

    Args:
      function: traced with `args`, arrays or `jax.ShapeDtypeStruct`.
    """
    costs: Any = jax.jit(function).lower(*args).cost_analysis()
    return int((costs or {}).get("flops", 0))


def multiply_adds_of(equation: Any) -> int:
    """`multiply_adds` of one equation of a trace."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        groups = params["batch_group_count"]
        return equation.outvars[0].aval.size * kernel.size // (features * groups)
    inner = [traced_multiply_adds(j) for j in inner_jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # its inside is the program of one device
        sizes = dict(params["mesh"].shape)  # along the others, that of all
        return math.prod(sizes[a] for a in params["newly_manual_axes"]) * sum(inner)
    return params.get("length", 1) * sum(inner)


def inner_jaxprs(params: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
