"""Weights that keep their norm: the projection of Normalize-and-Project."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.scanned import is_scanned, per_layer
from normjax.optim.base import TRANSFORMATIONS, of_updates

AFFINES = ("project", "regularize", "keep")

Path = tuple[str, ...]
Flat = dict[Path, Any]


class ProjectState(NamedTuple):
    """What the projection remembers of the initial parameters.

    Attributes:
      norms: norm of every group that is projected, at the path of its first array.
      anchors: scales and offsets that are drawn back, at their paths.
    """

    norms: Any
    anchors: Any


@dataclasses.dataclass(frozen=True)
class _Treatment:
    """Which parameters are treated, and how; see `normalize_and_project`."""

    affine: str
    strength: float
    with_bias: bool
    pattern: str
    scanned: tuple[str, ...]

    def groups(self, params: Any) -> tuple[list[list[Path]], list[Path]]:
        """Paths of arrays that are projected together, and of those drawn back."""
        projected, drawn = [], []
        for path, node in _nodes(params, ()):
            where = "/".join(path)
            if not re.search(self.pattern, where):
                continue
            several = is_scanned(where, self.scanned)
            dims = {k: max(getattr(v, "ndim", 0) - several, 0) for k, v in node.items()}
            for kernel, rank in dims.items():
                if kernel.endswith("kernel") and rank > 1:
                    bias = kernel.removesuffix("kernel") + "bias"
                    joint = self.with_bias and dims.get(bias)
                    names = (kernel, bias) if joint else (kernel,)
                    projected.append([(*path, name) for name in names])
            both = [(*path, name) for name in ("scale", "bias") if dims.get(name)]
            if dims.get("scale") and self.affine == "project":
                projected.append(both)
            elif dims.get("scale") and self.affine == "regularize":
                drawn += both
        return projected, drawn

    def remember(self, params: Any) -> ProjectState:
        """The state of initial parameters."""
        flat, (projected, drawn) = _flat(params), self.groups(params)
        norms = {group[0]: self._joint_norm(flat, group) for group in projected}
        anchors = {path: flat[path] for path in drawn}
        return ProjectState(unflatten_dict(norms), unflatten_dict(anchors))

    def changed(self, updates: Any, state: ProjectState, params: Any) -> Any:
        """Updates that lead to the treated parameters."""
        old, changes = _flat(params), _flat(updates)
        norms, anchors = _flat(state.norms), _flat(state.anchors)
        projected, drawn = self.groups(params)
        for group in projected:
            new = {path: old[path] + changes[path] for path in group}
            target, size = norms[group[0]], self._joint_norm(new, group)
            usable = (target > 0) & (size > 0)
            factor = jnp.where(usable, target / jnp.where(usable, size, 1), 1)
            scale = per_layer(jnp.multiply, "/".join(group[0]), self.scanned)
            for path in group:
                difference = scale(factor, new[path]) - old[path]
                changes[path] = difference.astype(old[path].dtype)
        for path in drawn:
            away = anchors[path] - old[path] - changes[path]
            changes[path] += self.strength * away
        return unflatten_dict(changes)

    def _joint_norm(self, flat: Flat, group: list[Path]) -> jax.Array:
        """A scalar, or one number a layer, [L], of layers that are scanned."""

        def norm(arrays):
            squares = [jnp.sum(jnp.square(at_least_float32(x))) for x in arrays]
            return jnp.sqrt(jnp.sum(jnp.stack(squares)))

        return per_layer(norm, "/".join(group[0]), self.scanned)(
            [flat[path] for path in group]
        )


@TRANSFORMATIONS.register("normalize_and_project")
@of_updates
def normalize_and_project(
    *,
    affine: str = "project",
    strength: float = 0.01,
    with_bias: bool = False,
    pattern: str = "",
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Weight matrices back to their initial norm after each update (Lyle et al., 2024).

        W <- W |W_0| / |W|   (Frobenius norms)

    With it the effective learning rate of a network that normalises before every
    non-linearity stays what the schedule says. It comes last in a chain, behind the
    learning rate. Matrices are arrays called `kernel` or `..._kernel`; one that starts
    at 0 is left alone.

    Args:
      affine: what is done with `scale` and `bias` of norms: "project", jointly to their
        initial norm; "regularize", p <- p + strength (p_0 - p); or "keep", nothing.
      strength: of "regularize".
      with_bias: a layer's bias is projected jointly with its kernel, as befits layers
        that a norm reads; otherwise it is left alone.
      pattern: regular expression, searched in the path of a layer or norm, of those
        that are treated.
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).

    Raises:
      UserError: unknown `affine`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from normjax import optim
      >>> transformation = optim.normalize_and_project()
      >>> params = {"fc": {"kernel": jnp.array([[3.0], [4.0]])}}  # of norm 5
      >>> state = transformation.init(params)
      >>> updates = {"fc": {"kernel": jnp.array([[3.0], [4.0]])}}
      >>> updates, state = transformation.update(updates, state, params)
      >>> kernel = optax.apply_updates(params, updates)["fc"]["kernel"]
      >>> print(kernel.ravel().round(3))  # not of norm 10
      [3. 4.]
    """
    if affine not in AFFINES:
        raise UserError(one_of("treatment of scale and offset", affine, AFFINES))
    treatment = _Treatment(affine, strength, with_bias, pattern, scanned)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("normalize_and_project: update(updates, state, params)")
        return treatment.changed(updates, state, params), state

    return optax.GradientTransformation(treatment.remember, update)


def _flat(tree: Any) -> Flat:
    return dict(flatten_dict(tree))  # pyright: ignore[reportReturnType]


def _nodes(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every dict of the tree with its path."""
    if isinstance(tree, Mapping):
        yield path, tree
        for name, child in tree.items():
            yield from _nodes(child, (*path, name))
