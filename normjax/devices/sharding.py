"""Which part of the state a device holds, by logical axes.

The dims of a parameter have names that follow from its path (`LOGICAL_AXES`), and
`config.sharding` maps names to axes of the mesh. State of the optimizer and the average
of the parameters lie as the parameters that they belong to; everything else, batch
statistics among it, is whole on every device.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.core.errors import UserError, one_of
from normjax.devices.mesh import AXES, FSDP, STAGE

LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)embed$", ("vocab", "embed")),
    (r"(^|/)head(_dist)?/kernel$", ("embed", "vocab")),
    # Convolutions; the dims of the window come before these two.
    (r"(^|/)stem/.*kernel$", (None, "embed")),
    (r"(^|/)(conv|sr|merge_\d+/(proj|reduction))/kernel$", ("embed", "mlp")),
    (r"/(q|k|v|kv|qk|qkv|qkvo|qkvu|vg|share|branches)/kernel$", ("embed", "heads")),
    (r"/proj/kernel$", ("heads", "embed")),
    (r"/experts/fc1/kernel$", ("expert", "embed", "mlp")),
    (r"/experts/fc2/kernel$", ("expert", "mlp", "embed")),
    (r"/(fc1|key)/kernel$", ("embed", "mlp")),
    (r"/(fc2|value)/kernel$", ("mlp", "embed")),
)
"""Names of the last dims of a parameter by a pattern of its path; the first that is
found counts. What no pattern names is split along its largest dim (see `spec_of`)."""

NAMES = tuple(dict.fromkeys(n for _, names in LOGICAL_AXES for n in names if n))

_STACKED = re.compile(
    r"(^|/)blocks/"
)  # layers that are scanned: their dim is the first

Rules = Mapping[str, str]


def rules_of(config: Any) -> dict[str, str]:
    """`config.sharding`: logical axis to mesh axis; "" leaves it whole.

    Raises:
      UserError: a name that is none of either.
    """
    rules = dict(config.sharding)
    for name, axis in rules.items():
        if name not in NAMES:
            raise UserError(one_of("logical axis of config.sharding:", name, NAMES))
        axes = [known for known in AXES if known != STAGE]
        if axis and axis not in axes:
            raise UserError(one_of(f"mesh axis in config.sharding.{name}:", axis, axes))
    return rules


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules):
    """How the parameter at `path` is split.

    A dim stays whole where its mesh axis does not divide it, is of size 1, or splits
    another dim already; vectors stay whole. The dim of scanned layers is split over the
    stages. An array of two or more dims that `LOGICAL_AXES` does not name is split
    along the largest dim that `fsdp` divides.
    """
    first = 1 if _STACKED.search(path) else 0
    staged = first and mesh.shape[STAGE] > 1 and shape[0] % mesh.shape[STAGE] == 0
    if len(shape) - first < 2:
        return PartitionSpec(STAGE) if staged else PartitionSpec()
    names = next((n for p, n in LOGICAL_AXES if re.search(p, path)), None)
    if names is None:
        order = sorted(range(first, len(shape)), key=lambda dim: -shape[dim])
        wanted = [(dim, FSDP) for dim in order]
    else:
        offset = len(shape) - len(names)
        wanted = [(offset + i, rules.get(n or "", "")) for i, n in enumerate(names)]
    split: list[str | None] = [None] * len(shape)
    if staged:
        split[0] = STAGE
    for dim, axis in wanted:
        size = mesh.shape[axis] if axis else 1
        if size > 1 and axis not in split and shape[dim] % size == 0:
            split[dim] = axis
    return PartitionSpec(*split)


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules) -> Any:
    """The `NamedSharding` of every array of a `TrainState`.

    Args:
      abstract_state: the state, or its shapes.
      rules: of `rules_of`.

    Returns:
      a tree of the structure of the state.
    """
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state.params):
        name = _name(path)
        specs[name] = leaf.shape, spec_of(name, leaf.shape, mesh, rules)

    def follow(path, leaf):
        """As the parameter whose path the path of `leaf` ends with."""
        shape, spec = specs.get(_owner(_name(path), specs), ((), PartitionSpec()))
        if shape != leaf.shape:
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda _: whole, abstract_state).replace(
        params=jax.tree_util.tree_map_with_path(follow, abstract_state.params),
        opt_state=jax.tree_util.tree_map_with_path(follow, abstract_state.opt_state),
        ema=jax.tree_util.tree_map_with_path(follow, abstract_state.ema),
    )


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Shapes and dtypes that know where they lie.

    Args:
      shardings: one, or a tree of them of the structure of `abstract`.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, abstract)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        shardings,
    )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _owner(path: str, names: Any) -> str:
    """The longest of `names` that is `path` or its end; "" if there is none."""
    parts = path.split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((end for end in ends if end in names), "")
