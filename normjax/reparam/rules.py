"""Which layers of a model are reparameterized, and how: functions of its variables.

What a layer is, is read off the tree of parameters, so neither the model nor the layer
knows. Own parameters lie beside the raw weights ("blocks_0/mlp/fc1/gamma"), state lies
at the same path of the collection `spectral_stats`.
"""

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.core.collections import PARAMS, SPECTRAL_STATS
from normjax.core.errors import UserError
from normjax.core.scanned import is_scanned, per_layer
from normjax.reparam.base import BIAS, KERNEL, REPARAMS, SCALE, Reparameterization

Variables = Mapping[str, Any]
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which layers are reparameterized, and how.

    Attributes:
      pattern: regular expression, searched in the path of a layer ("blocks_0/mlp/fc1").
      reparam: what is done with the layers that it finds and that this can take.
      scanned: names at the root of what holds several layers, each treated by itself
        (see `core.scanned`); a path is one for all of them, "blocks/mlp/fc1".

    Example:
      >>> import jax
      >>> from normjax import reparam
      >>> rule = reparam.Rule("mlp/fc", reparam.WeightNormalization())
      >>> params = {"mlp": {"fc1": {"kernel": jax.numpy.ones((2, 3))}}}
      >>> [site.path for site in reparam.sites([rule], params)]
      [('mlp', 'fc1')]
    """

    pattern: str
    reparam: Reparameterization
    scanned: tuple[str, ...] = ()


class Site(NamedTuple):
    """One reparameterized layer.

    Attributes:
      path: names from the root of the parameters.  layer: its raw weights.
      reparam: what is done with them.

    Example:
      >>> import jax
      >>> from normjax import reparam
      >>> rules = reparam.rules_of({"pattern": "fc", "name": "weight_normalization"})
      >>> (site,) = reparam.sites(rules, {"fc": {"kernel": jax.numpy.ones((2, 3))}})
      >>> site.path, sorted(site.layer), site.reparam
      (('fc',), ['kernel'], WeightNormalization())
    """

    path: Path
    layer: dict[str, jax.Array]
    reparam: Reparameterization


class Effective(NamedTuple):
    """What a reparameterized model computes with.

    Attributes:
      params: of the plain model; layers may have a `bias` that it does not give them.
      state: next value of the collection `spectral_stats`.
      biased: paths of the layers with such a bias, "blocks_0/mlp/fc1".

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rules = reparam.rules_of({"pattern": "fc", "name": "scale_and_shift"})
      >>> variables = {"params": {"fc": {"kernel": jnp.ones((2, 3))}}}  # no bias
      >>> variables = reparam.attach(rules, variables, jax.random.key(0))
      >>> result = reparam.effective(rules, variables, train=False)
      >>> sorted(result.params["fc"]), result.biased
      (['bias', 'kernel'], frozenset({'fc'}))
    """

    params: dict[str, Any]
    state: dict[str, Any]
    biased: frozenset[str]


def rules_of(spec: Any, scanned: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """The rules that a config describes.

    Args:
      spec: a mapping `{"pattern": ..., "name": key of REPARAMS, **arguments}`, a
        sequence of them or of rules, or nothing (None or empty).
      scanned: of the model, see `Rule`.

    Raises:
      UserError: no pattern, or one that is no regular expression; unknown name or
        argument.

    Example:
      >>> from normjax import reparam
      >>> (rule,) = reparam.rules_of({"pattern": "mlp", "name": "sigma_reparam"})
      >>> rule.pattern, rule.reparam
      ('mlp', SigmaReparam(gamma_init='one'))
      >>> reparam.rules_of(None)
      ()
    """
    specs = (spec,) if isinstance(spec, Mapping) else tuple(spec or ())
    rules = (s if isinstance(s, Rule) else _rule_of(s) for s in specs if s)
    return tuple(dataclasses.replace(rule, scanned=scanned) for rule in rules)


def _rule_of(spec: Any) -> Rule:
    spec = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    pattern = spec.pop("pattern", None)
    if not isinstance(pattern, str):
        raise UserError(f"a reparameterization needs a 'pattern', got {spec}")
    try:
        re.compile(pattern)
    except re.error as error:
        message = f"pattern {pattern!r} of a reparameterization: {error}"
        raise UserError(message) from None
    return Rule(pattern, REPARAMS.factory(spec)())


def sites(rules: Sequence[Rule], params: Any) -> list[Site]:
    """The layers that the rules find, each with the first rule that takes it.

    Args:
      rules: as of `rules_of`.
      params: of a plain or of the reparameterized model.

    Raises:
      UserError: a rule finds no layer, or others took all of them.

    Example:
      >>> import jax
      >>> from normjax import reparam
      >>> rules = reparam.rules_of({"pattern": "fc", "name": "weight_normalization"})
      >>> kernel = jax.numpy.ones((2, 3))
      >>> params = {"fc1": {"kernel": kernel}, "head": {"kernel": kernel}}
      >>> [site.path for site in reparam.sites(rules, params)]
      [('fc1',)]
    """
    found, idle = [], set(rules)
    for path, node in _nodes(params, ()):
        for rule in rules:
            name = "/".join(path)
            layer = _layer_of(node, rule.reparam, is_scanned(name, rule.scanned))
            if layer and re.search(rule.pattern, name):
                found.append(Site(path, layer, rule.reparam))
                idle.discard(rule)
                break
    for rule in rules:
        if rule in idle:
            name = type(rule.reparam).__name__
            raise UserError(
                f"pattern {rule.pattern!r} of {name} finds no layer that is left to it"
            )
    return found


def _nodes(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every dict of the tree with its path."""
    if isinstance(tree, Mapping):
        yield path, tree
        for name, child in tree.items():
            yield from _nodes(child, (*path, name))


def _layer_of(
    node: Any, reparam: Reparameterization, several: bool
) -> dict[str, jax.Array] | None:
    """The raw weights of a layer that `reparam` can take, or None.

    Args:
      several: the weights have a first axis of layers.
    """
    layer = {k: v for k, v in node.items() if k not in reparam.own}
    if getattr(layer.get(KERNEL), "ndim", 0) > 1 + several:
        return {k: layer[k] for k in (KERNEL, BIAS) if k in layer}
    if not reparam.on_norms or SCALE not in layer or not set(layer) <= {SCALE, BIAS}:
        return None
    vectors = all(getattr(v, "ndim", 0) == 1 + several for v in layer.values())
    return layer if vectors else None


def attach(
    rules: Sequence[Rule], variables: Variables, key: jax.Array
) -> dict[str, Any]:
    """Variables of a plain model -> those of the reparameterized one.

    So a trained model is reparameterized: its weights become the raw ones. Whether the
    effective weights equal them at first is said by each reparameterization.

    Args:
      rules: as of `rules_of`.
      variables: of the model; they are not changed.  key: for random initial values.

    Raises:
      UserError: a rule finds no layer.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rules = reparam.rules_of({"pattern": "fc", "name": "weight_normalization"})
      >>> trained = {"params": {"fc": {"kernel": jnp.array([[3.0], [4.0]])}}}
      >>> variables = reparam.attach(rules, trained, jax.random.key(0))
      >>> print(variables["params"]["fc"]["gain"])  # the norm of the kernel
      [5.]
    """
    params, state = _flat(variables.get(PARAMS, {})), {}
    scanned = _scanned(rules)
    for path, layer, reparam in sites(rules, variables.get(PARAMS, {})):
        name = "/".join(path)
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        if is_scanned(name, scanned):
            own_key = jax.random.split(own_key, len(next(iter(layer.values()))))
        own, held = per_layer(reparam.create, name, scanned)(layer, own_key)
        params.update(_at(path, own))
        state.update(_at(path, held))
    new = {**variables, PARAMS: unflatten_dict(params)}
    return {**new, SPECTRAL_STATS: unflatten_dict(state)} if state else new


def effective(rules: Sequence[Rule], variables: Variables, *, train: bool) -> Effective:
    """What the plain model is to compute with; see `Effective`.

    Weights are made in at least float32 and get the dtype of the raw ones.

    Args:
      rules: as of `rules_of`.
      variables: of the reparameterized model.  train: whether the state moves.

    Raises:
      UserError: a rule finds no layer, or a layer lacks its own parameters or state.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rules = reparam.rules_of({"pattern": "fc", "name": "weight_standardization"})
      >>> variables = {"params": {"fc": {"kernel": jnp.array([[1.0], [2.0], [3.0]])}}}
      >>> result = reparam.effective(rules, variables, train=False)
      >>> print(result.params["fc"]["kernel"].ravel().round(3))
      [-1.  0.  1.]
    """
    params, stored = (
        _flat(variables.get(PARAMS, {})),
        _flat(variables.get(SPECTRAL_STATS, {})),
    )
    state, biased, scanned = {}, set(), _scanned(rules)
    for path, layer, reparam in sites(rules, variables.get(PARAMS, {})):
        own = _take(params, path, reparam.own, PARAMS)
        held = _take(stored, path, reparam.held, SPECTRAL_STATS)
        make = functools.partial(reparam.effective, train=train)
        weights, held = per_layer(make, "/".join(path), scanned)(layer, own, held)
        main = layer[KERNEL] if KERNEL in layer else layer[SCALE]
        typed = {k: w.astype(layer.get(k, main).dtype) for k, w in weights.items()}
        params.update(_at(path, typed))
        state.update(_at(path, held))
        if BIAS in weights and BIAS not in layer:
            biased.add("/".join(path))
    return Effective(unflatten_dict(params), unflatten_dict(state), frozenset(biased))


def _scanned(rules: Sequence[Rule]) -> set[str]:
    return {name for rule in rules for name in rule.scanned}


def _flat(tree: Any) -> dict[Path, Any]:
    return dict(flatten_dict(unfreeze(tree)))  # pyright: ignore[reportArgumentType]


def _at(path: Path, arrays: Mapping[str, Any]) -> dict[Path, Any]:
    return {(*path, name): array for name, array in arrays.items()}


def _take(flat: dict[Path, Any], path: Path, names: Sequence[str], collection: str):
    """The arrays `names` at `path`, removed from `flat`."""
    for name in names:
        if (*path, name) not in flat:
            raise UserError(
                f"{collection} of {'/'.join(path)} hold no {name!r}: reparam.attach "
                "makes variables of the plain model into those of a reparameterized one"
            )
    return {name: flat.pop((*path, name)) for name in names}
