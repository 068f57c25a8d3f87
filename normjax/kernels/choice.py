"""A kernel on TPUs in the place of a function that all platforms have."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from normjax.core.spmd import over_batch

Function = Callable[..., Any]


def kernel_or_function(
    kernel: Function,
    function: Function,
    batched: tuple[Any, ...],
    *rest: Any,
    pullback: Function | None = None,
    with_residuals: tuple[Function, Function] | None = None,
) -> Any:
    """`function(*batched, *rest)`, which a TPU computes by `kernel`.

    Derivatives and `jax.vmap` are those of `function`, but for gradients where a TPU
    has a kernel for them, too. A kernel cannot be divided among devices by the
    compiler: several have it inside of `shard_map`, and in the loop, which says how its
    batch is divided (`core.spmd.batch_divided`); elsewhere they have the function.

    Args:
      kernel, function: of the same arguments, to the same tree of arrays [B, ...].
      batched: trees of arrays [B, ...].
      rest: trees of arrays that are the same for all examples.
      pullback: (arguments, cotangents of the result) -> tuple of gradients, in the
        types of the arguments: the kernel of the gradients.
      with_residuals: what takes the places of kernel and function where gradients are
        asked for, to (result, residuals): the latter are a third argument of
        `pullback`. Those of the function are read by nobody.
    """

    def local(*trees):
        arrays, structure = jax.tree.flatten(trees)

        def flat(apply):
            return lambda *a: jax.tree.leaves(apply(*jax.tree.unflatten(structure, a)))

        def traced(apply):
            return jax.make_jaxpr(flat(apply))(*arrays)

        result = jax.tree.structure(jax.eval_shape(function, *trees))
        reference, kept, residuals = traced(function), (), None
        if with_residuals:
            kept = flat(with_residuals[0]), traced(with_residuals[1])
            _, shapes = jax.eval_shape(with_residuals[1], *trees)
            residuals = jax.tree.structure(shapes)

        def pulled(*given):
            count, end = len(arrays), len(given) - result.num_leaves
            primals = jax.tree.unflatten(structure, given[:count])
            cotangents = jax.tree.unflatten(result, given[end:])
            more = [jax.tree.unflatten(residuals, given[count:end])] if kept else []
            return jax.tree.leaves(pullback and pullback(primals, cotangents, *more))

        y = _kernel_p.bind(
            *arrays,
            reference=reference,
            kernel=flat(kernel),
            pullback=pulled if pullback else None,
            kept=kept,
        )
        return jax.tree.unflatten(result, y)

    return over_batch(local, batched, *rest)


def lower_by_platform(
    primitive: core.Primitive, function: Function, kernel: Function
) -> None:
    """Programs have `function` for a primitive, those of one TPU `kernel`.

    A part of `shard_map` is that of one. Both take its operands and parameters.
    """
    several = primitive.multiple_results
    default = mlir.lower_fun(function, multiple_results=several)
    by_kernel = mlir.lower_fun(kernel, multiple_results=several)

    def for_tpu(context, *operands, **parameters):
        axes = context.module_context.axis_context
        mesh = getattr(axes, "mesh", None)
        devices = getattr(axes, "num_devices", None) or (mesh.size if mesh else 1)
        divided = devices > 1 and not getattr(axes, "manual_axes", None)
        chosen = default if divided else by_kernel
        return chosen(context, *operands, **parameters)

    mlir.register_lowering(primitive, default)
    mlir.register_lowering(primitive, for_tpu, platform="tpu")


_kernel_p = core.Primitive("kernel_or_function")
_kernel_p.multiple_results = True
_tangent_p = core.Primitive("kernel_or_function_tangent")
_tangent_p.multiple_results = True


def _reference(*arrays, reference, **_):
    return core.jaxpr_as_fun(reference)(*arrays)


def _jvp(primals, tangents, *, kernel, kept, **given):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    reference, pullback = given["reference"], given["pullback"]
    if pullback is None:
        return jax.jvp(lambda *p: _reference(*p, **given), primals, tangents)
    kernel, traced = kept or (kernel, reference)
    found = _kernel_p.bind(
        *primals, reference=traced, kernel=kernel, pullback=None, kept=()
    )
    count = len(reference.out_avals)
    y, residuals = found[:count], found[count:]
    return y, _tangent_p.bind(*primals, *residuals, *tangents, **given)


def _split(arrays, reference):
    """(primals, residuals, tangents)."""
    count = len(reference.in_avals)
    return arrays[:count], arrays[count:-count], arrays[-count:]


def _tangent(*arrays, reference, **_):
    primals, _, tangents = _split(arrays, reference)
    return jax.jvp(core.jaxpr_as_fun(reference), primals, tangents)[1]


def _transposed(cotangents, *arrays, reference, pullback):
    primals, residuals, tangents = _split(arrays, reference)
    cotangents = tuple(map(ad.instantiate_zeros, cotangents))

    def pulled(*given):
        y, pull = jax.vjp(core.jaxpr_as_fun(reference), *given[: len(primals)])
        return pull(type(y)(given[-len(y) :]))

    given = *primals, *residuals, *cotangents
    traced = jax.make_jaxpr(pulled)(*given)
    found = _kernel_p.bind(
        *given, reference=traced, kernel=pullback, pullback=None, kept=()
    )
    wanted = map(ad.is_undefined_primal, tangents)
    gradients = (g if w else None for g, w in zip(found, wanted, strict=True))
    return [*(None for _ in (*primals, *residuals)), *gradients]


def _batch(operands, dims, **parameters):
    mapped = jax.vmap(lambda *p: _reference(*p, **parameters), in_axes=tuple(dims))
    y = mapped(*operands)
    return y, [0] * len(y)


def _by_kernel(*arrays, kernel, **_):
    return kernel(*arrays)


def _evaluate(*arrays, **parameters):
    return jax.jit(lambda *p: _kernel_p.bind(*p, **parameters))(*arrays)


def _of_reference(*_, reference, **__):
    return list(reference.out_avals)


def _tangents_jvp(primals, tangents, **parameters):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(lambda *p: _tangent(*p, **parameters), primals, tangents)


def _batch_tangents(operands, dims, **parameters):
    mapped = jax.vmap(lambda *p: _tangent(*p, **parameters), in_axes=tuple(dims))
    y = mapped(*operands)
    return y, [0] * len(y)


_kernel_p.def_impl(_evaluate)
_kernel_p.def_abstract_eval(_of_reference)
ad.primitive_jvps[_kernel_p] = _jvp
batching.primitive_batchers[_kernel_p] = _batch
lower_by_platform(_kernel_p, _reference, _by_kernel)
_tangent_p.def_impl(lambda *p, **k: jax.jit(functools.partial(_tangent, **k))(*p))
_tangent_p.def_abstract_eval(_of_reference)
ad.primitive_jvps[_tangent_p] = _tangents_jvp
ad.primitive_transposes[_tangent_p] = _transposed
batching.primitive_batchers[_tangent_p] = _batch_tangents
lower_by_platform(_tangent_p, _tangent, _tangent)
