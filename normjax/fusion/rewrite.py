"""A model with some of its norms exchanged, and the trees of its variables."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from normjax.core.broadcast import add_bias
from normjax.core.collections import PARAMS
from normjax.core.folding import FoldSite
from normjax.core.scanned import paths_of_layers, scanned_of


class RewrittenModel(nn.Module):
    """A model some of whose norms have become other norms, without parameters.

    Has the arguments and the result of `model`, and its variables but for those of the
    exchanged norms.

    Attributes:
      model: the model before.
      norms: pairs (path of a norm, the parameterless norm that runs instead).
      biased: paths of the linear layers that got a bias which `model` does not give
        them.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> folded, _ = fusion.fold(model, variables)
      >>> type(folded).__name__, {type(norm).__name__ for _, norm in folded.norms}
      ('RewrittenModel', {'NoNorm'})
    """

    model: nn.Module
    norms: tuple[tuple[str, nn.Module], ...] = ()
    biased: frozenset[str] = frozenset()

    def setup(self):
        nn.share_scope(self, self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(self._intercept):
            return self.model(*args, **kwargs)

    @nn.nowrap
    def _intercept(self, call, args, kwargs, context):
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path[len(self.path) :])
        norm = dict(self.norms).get(path)
        if norm is not None:
            return norm.apply({}, args[0])
        y = call(*args, **kwargs)
        if path in self.biased:
            y = add_bias(y, context.module.get_variable(PARAMS, "bias"))
        return y

    @property
    def scanned(self) -> tuple[str, ...]:
        """As `model`, see `core.scanned`."""
        return scanned_of(self.model)

    @nn.nowrap
    def unrolled(
        self, variables: Mapping[str, Any]
    ) -> tuple["RewrittenModel", Mapping[str, Any]]:
        """The same with a module for every layer, and its variables."""
        if not self.scanned:
            return self, variables
        model: Any = self.model
        plain, apart = model.unrolled(variables)
        layers = [paths_of_layers(p, self.scanned, model.depth) for p in self.biased]
        return self.clone(model=plain, biased=frozenset().union(*layers)), apart

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The sites of `model` with the norms that are there now."""
        norms = dict(self.norms)
        return [
            dataclasses.replace(site, norm=norms.get(site.path, site.norm))
            for site in self.model.fold_sites()  # pyright: ignore[reportAttributeAccessIssue]
        ]


def rewritten(
    model: nn.Module, norms: Mapping[str, nn.Module], biased: Iterable[str]
) -> RewrittenModel:
    """`model` with further norms exchanged; one that is rewritten is not nested."""
    norms, biased = dict(norms), frozenset(biased)
    if isinstance(model, RewrittenModel):
        norms, biased = {**dict(model.norms), **norms}, model.biased | biased
        model = model.model
    return RewrittenModel(model, tuple(norms.items()), biased)


def unrolled(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model and its variables, with a module of its own for every layer."""
    apart: Any = getattr(model, "unrolled", None)
    return apart(variables) if apart else (model, variables)


def is_linear(layer: Any) -> bool:
    """Whether these are the parameters of a Dense or Conv."""
    return isinstance(layer, Mapping) and {"kernel"} <= set(layer) <= {"kernel", "bias"}


def mutable_tree(tree: Any) -> Any:
    """A copy whose dicts may be changed; the arrays are shared."""
    if isinstance(tree, Mapping):
        return {name: mutable_tree(value) for name, value in tree.items()}
    return tree


def subtree(tree: Any, path: str) -> Any:
    """What lies at `path` ("blocks_0/norm1"), or None."""
    for name in path.split("/"):
        if tree is None or name not in tree:
            return None
        tree = tree[name]
    return tree


def remove(tree: dict, path: str) -> None:
    """Remove what lies at `path`, if anything, and the dicts that it leaves empty."""
    *parents, last = path.split("/")
    trail = [tree]
    for name in parents:
        if name not in trail[-1]:
            return
        trail.append(trail[-1][name])
    trail[-1].pop(last, None)
    for parent, name in zip(reversed(trail[:-1]), reversed(parents), strict=True):
        if not parent[name]:
            del parent[name]
