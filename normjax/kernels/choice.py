"""A kernel on TPUs in the place of a function that all platforms have."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from normjax.core.spmd import over_batch

Function = Callable[..., Any]


def kernel_or_function(
    kernel: Function, function: Function, batched: tuple[Any, ...], *rest: Any
) -> Any:
    """`function(*batched, *rest)`, which a TPU computes by `kernel`.

    Derivatives and `jax.vmap` are those of `function`. A kernel cannot be divided among
    devices by the compiler: several have it inside of `shard_map`, and in the loop,
    which says how its batch is divided (`core.spmd.batch_divided`); elsewhere they have
    the function.

    Args:
      kernel, function: of the same arguments, to the same tree of arrays [B, ...].
      batched: trees of arrays [B, ...].
      rest: trees of arrays that are the same for all examples.
    """

    def local(*trees):
        arrays, structure = jax.tree.flatten(trees)

        def flat(apply):
            return lambda *a: jax.tree.leaves(apply(*jax.tree.unflatten(structure, a)))

        reference = jax.make_jaxpr(flat(function))(*arrays)
        y = _kernel_p.bind(*arrays, reference=reference, kernel=flat(kernel))
        made = jax.eval_shape(function, *trees)
        return jax.tree.unflatten(jax.tree.structure(made), y)

    return over_batch(local, batched, *rest)


_kernel_p = core.Primitive("kernel_or_function")
_kernel_p.multiple_results = True


def _reference(*arrays, reference, kernel):
    del kernel
    return core.jaxpr_as_fun(reference)(*arrays)


def _jvp(primals, tangents, **parameters):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(lambda *p: _reference(*p, **parameters), primals, tangents)


def _batch(operands, dims, **parameters):
    mapped = jax.vmap(lambda *p: _reference(*p, **parameters), in_axes=tuple(dims))
    y = mapped(*operands)
    return y, [0] * len(y)


def _lower_for_tpu(context, *operands, reference, kernel):
    axes = context.module_context.axis_context
    mesh = getattr(axes, "mesh", None)
    devices = getattr(axes, "num_devices", None) or (mesh.size if mesh else 1)
    if devices > 1 and not getattr(axes, "manual_axes", None):
        return _lower(context, *operands, reference=reference, kernel=kernel)
    return mlir.lower_fun(kernel, multiple_results=True)(context, *operands)


def _evaluate(*arrays, **parameters):
    return jax.jit(lambda *p: _kernel_p.bind(*p, **parameters))(*arrays)


_lower = mlir.lower_fun(_reference, multiple_results=True)
_kernel_p.def_impl(_evaluate)
_kernel_p.def_abstract_eval(lambda *_, reference, **__: list(reference.out_avals))
ad.primitive_jvps[_kernel_p] = _jvp
batching.primitive_batchers[_kernel_p] = _batch
mlir.register_lowering(_kernel_p, _lower)
mlir.register_lowering(_kernel_p, _lower_for_tpu, platform="tpu")
