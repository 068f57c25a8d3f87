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


def _by_kernel(*arrays, reference, kernel):
    del reference
    return kernel(*arrays)


def _evaluate(*arrays, **parameters):
    return jax.jit(lambda *p: _kernel_p.bind(*p, **parameters))(*arrays)


_kernel_p.def_impl(_evaluate)
_kernel_p.def_abstract_eval(lambda *_, reference, **__: list(reference.out_avals))
ad.primitive_jvps[_kernel_p] = _jvp
batching.primitive_batchers[_kernel_p] = _batch
lower_by_platform(_kernel_p, _reference, _by_kernel)
