"""A model that knows where its parameters and activations lie on the mesh.

What lies where between two steps is said by the shardings of the state. Inside a step
the compiler chooses, and left alone it chooses badly: it cannot know that moving the
activations of all examples is many times dearer than gathering a weight, and where both
axes of the batch and an axis of a weight meet in one product, XLA's partitioner (jax
0.10.2) gives wrong numbers. So weights are gathered along `fsdp` where they are used,
and activations stay split along the batch.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.core.collections import BATCH_STATS, PARAMS
from normjax.core.errors import UserError
from normjax.core.scanned import layers_run_by, scanned_of
from normjax.core.spmd import batch_divided
from normjax.devices.mesh import BATCH_AXES, COPIES, STAGE, batch_shards
from normjax.devices.pipeline import Pipeline, in_microbatches


class Placed(NamedTuple):
    """`model` on a mesh; in its place wherever only `apply` is called.

    Attributes:
      shardings: of its parameters, a tree.
      microbatches: that go through the stages of the mesh, if it has several; 0: the
        layers are gathered.
    """

    model: nn.Module
    mesh: Mesh
    shardings: Any
    microbatches: int = 1

    @property
    def scanned(self) -> tuple[str, ...]:
        """As `model`, see `core.scanned`."""
        return scanned_of(self.model)

    def apply(self, variables: dict[str, Any], x: Any, **arguments: Any) -> Any:
        """As `model.apply`.

        Args:
          x: array, or a tree of arrays, whose first dim is the batch.
        """
        rows = jax.tree.leaves(x)[0].shape[0]
        params = jax.tree.map(_gathered, variables[PARAMS], self.shardings)
        if hasattr(self.model, "host"):  # makes weights of its own before they are used
            params = meta.unbox(params)
        staged = self.microbatches > 0 and self.mesh.shape[STAGE] > 1
        with contextlib.ExitStack() as around:
            around.enter_context(nn.intercept_methods(_hold_rows(self.mesh, rows)))
            if self.mesh.size == batch_shards(self.mesh):
                around.enter_context(batch_divided(self.mesh, BATCH_AXES))
            if staged:
                pipeline = Pipeline(self.mesh, self.microbatches)
                around.enter_context(layers_run_by(pipeline))
            if staged and self.microbatches > 1 and arguments.get("train"):
                apart = _statistics_apart(self.microbatches, rows)
                around.enter_context(nn.intercept_methods(apart))
            return self.model.apply({**variables, PARAMS: params}, x, **arguments)


class Split(flax.struct.PyTreeNode, meta.AxisMetadata):
    """A parameter that is gathered when a module asks for it.

    Inside the module's own code: a layer that is scanned or recomputed in the backward
    pass is gathered anew for each of its turns, and no other with it.

    Attributes:
      value: the parameter.  whole: where it is to lie.
    """

    value: Any
    whole: NamedSharding = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.value.shape

    def unbox(self) -> Any:
        """The parameter, gathered."""
        return jax.lax.with_sharding_constraint(self.value, self.whole)

    def replace_boxed(self, val: Any) -> "Split":
        """The same with another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Split":
        """With an axis of layers more."""
        del params
        spec = list(self.whole.spec)
        return self._along(*spec[:index], None, *spec[index:])

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Split":
        """With the axis of layers less: a scan gives one at a time."""
        del params
        spec = list(self.whole.spec)
        return self._along(*spec[:index], *spec[index + 1 :])

    def _along(self, *spec: Any) -> "Split":
        whole = NamedSharding(self.whole.mesh, PartitionSpec(*spec))
        return self.replace(whole=whole)


def _gathered(value: jax.Array, sharding: NamedSharding) -> Any:
    if not set(COPIES) & set(sharding.spec):
        return value
    spec = (None if axis in COPIES else axis for axis in sharding.spec)
    whole = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return Split(value=value, whole=whole)


def _statistics_apart(microbatches: int, rows: int) -> Any:
    """An interceptor: what has running statistics takes one microbatch after the other.

    As the layers in the stages do, which it leaves alone.
    """
    apart = False

    def call_in_parts(call, args, kwargs, context):
        nonlocal apart
        module, within = context.module, jax.sharding.get_abstract_mesh().manual_axes
        if apart or within or context.method_name != "__call__" or not _has_own(module):
            return call(*args, **kwargs)
        if args[0].shape[0] != rows:
            where = "/".join(module.path)
            hint = f"{where} has running statistics and reads {args[0].shape[0]} rows"
            raise UserError(f"config.mesh.stage: {hint} of a batch of {rows}")
        apart = True
        try:
            return in_microbatches(module, microbatches, *args, **kwargs)
        finally:
            apart = False

    return call_in_parts


def _has_own(module: nn.Module) -> bool:
    """Whether there are batch statistics that belong to no module inside."""
    stats = module.variables.get(BATCH_STATS, {})
    return not all(isinstance(value, Mapping) for value in stats.values())


def _hold_rows(mesh: Mesh, rows: int) -> Any:
    """An interceptor that keeps arrays of `rows` rows split along the batch."""
    free = PartitionSpec.UNCONSTRAINED

    def hold(y):
        if not isinstance(y, jax.Array) or y.ndim < 2 or y.shape[0] != rows:
            return y
        if rows % batch_shards(mesh):  # the last batch of an evaluation
            return y
        if jax.sharding.get_abstract_mesh().manual_axes:  # within a stage
            return y
        spec = PartitionSpec(BATCH_AXES, *[free] * (y.ndim - 1))
        return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, spec))

    def call_and_hold(call, args, kwargs, context):
        y = call(*args, **kwargs)
        return jax.tree.map(hold, y) if context.method_name == "__call__" else y

    return call_and_hold
