"""The step as one program per device, which is what `jax.pmap` is.

`jax.pmap` has become `jit` of `shard_map` and takes arrays of one process only. This is
that `shard_map` by itself, on global arrays: the same with one process and with many,
on devices that are there and on those that are only compiled for.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from normjax.core.arguments import field_names
from normjax.core.errors import UserError
from normjax.core.registry import unwrapped
from normjax.devices.mesh import DATA, FSDP, STAGE, TENSOR


def check_mesh(mesh: Mesh) -> None:
    """Raises UserError for a mesh on which a device has no examples of its own."""
    sizes = {axis: mesh.shape[axis] for axis in (FSDP, TENSOR, STAGE)}
    if any(size > 1 for size in sizes.values()):
        got = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        needs = ", ".join(f"{axis}=1" for axis in sizes)
        raise UserError(
            f"config.parallelism='pmap' needs config.mesh {needs}, got {got}"
        )


def with_axis_name(model: Any, axis_name: str) -> Any:
    """`model` with every norm that it is given reducing over `axis_name`.

    Norms without the field `axis_name` need none. A component's own components are
    reached as far as they are factories.
    """
    if isinstance(model, functools.partial):
        make, given = unwrapped(model)
        given = {k: with_axis_name(v, axis_name) for k, v in given.items()}
        if inspect.isclass(make) and "axis_name" in field_names(make):
            given["axis_name"] = axis_name
        return functools.partial(make, **given)
    if isinstance(model, tuple):
        return tuple(with_axis_name(part, axis_name) for part in model)
    if isinstance(model, nn.Module):
        fields = [f.name for f in dataclasses.fields(model) if f.init]
        parts = {n: getattr(model, n) for n in fields if n not in ("parent", "name")}
        changed = {n: with_axis_name(v, axis_name) for n, v in parts.items()}
        return model.clone(**{n: v for n, v in changed.items() if v is not parts[n]})
    return model


def per_device(gradients: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`gradients` of `step.make_gradients` on each device's own rows, reduced.

    Gradients are added over the devices (each is given that of its share of the loss),
    metrics and the state of the model are averaged; counters are the same everywhere.
    Random keys inside the model differ by device.
    """

    def local(params, model_state, inputs, targets, key, made):
        key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
        model_state, grads, metrics = gradients(
            params, model_state, inputs, targets, key, made
        )
        mean = functools.partial(jax.tree.map, _mean)
        return mean(model_state), jax.lax.psum(grads, DATA), mean(metrics)

    whole, rows = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, rows, rows, whole, whole),
        out_specs=whole,
        check_vma=False,
    )


def _mean(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, DATA) if jnp.issubdtype(x.dtype, jnp.floating) else x
