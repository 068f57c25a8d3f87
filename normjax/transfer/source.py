"""What a run can begin with: the arrays of a model, and what is known of it."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from normjax import convert
from normjax.convert.settings import published_settings, settle
from normjax.core.collections import BATCH_STATS, COUNTER, PARAMS
from normjax.core.errors import UserError
from normjax.core.scanned import scanned_of, split_layers

PROGRESSIVE = ("prepbn", "repbn")
"""Norms that files keep otherwise than LayerNorm."""


class Source(NamedTuple):
    """Weights that are there.

    Attributes:
      title: what they are of, in a few words.
      arrays: by "params/blocks_0/mlp/fc1/kernel"; layers that are scanned apart.
      end: updates after which its progressive norms have ended; 0: it has none.
      class_names: in the order of the logits; () if unknown.
      aspect: height / width of its images.
      foreign: arrays of a file without a place in the model: name -> why models may
        lack them, or "".
      dropped: arrays of a file that are no weights: name -> why.
    """

    title: str
    arrays: dict[str, np.ndarray]
    end: int = 0
    class_names: tuple[str, ...] = ()
    aspect: float = 1.0
    foreign: Mapping[str, str] = {}
    dropped: Mapping[str, str] = {}


def schedule_end(model: nn.Module) -> int:
    """Updates after which the progressive norms of a model have ended; 0: none."""
    norm: Any = getattr(getattr(model, "host", model), "norm", None)
    if norm is None or not hasattr(module := norm(parent=None), "decay"):
        return 0
    begun = module.decay({PARAMS: {}, BATCH_STATS: {COUNTER: np.zeros((), int)}})
    return begun[1] if begun else 0


def of_variables(
    title: str, variables: Mapping[str, Any], model: nn.Module, **known: Any
) -> Source:
    """The source that the variables of a model of ours are.

    Args:
      **known: `class_names` and `aspect`.
    """
    apart = {
        collection: split_layers(tree, scanned_of(model))
        for collection, tree in variables.items()
    }
    flat: Any = flatten_dict(apart, sep="/")
    arrays = {path: np.asarray(array) for path, array in flat.items()}
    return Source(title, arrays, schedule_end(model), **known)


def of_file(
    path: Path,
    config: Any,
    build: Callable[[Any], nn.Module],
    image_shape: tuple[int, ...],
    *,
    averaged: bool = False,
) -> Source:
    """The weights of a published file or folder, as those of a model like ours.

    Args:
      config: of the run.
      build: function of a config to its model.
      image_shape: [H, W, C] of the run; () for text.
      averaged: the average of the weights that lies beside them.

    Raises:
      UserError: no weights that such a model has a place for, or a config.json beside
        them that says something else of it.
    """
    weights = convert.load(path, averaged=averaged)
    config = copy.deepcopy(config)
    with config.unlocked():
        norm = config.model.norm
        spec = norm if isinstance(norm, str) else norm.to_dict()
        spec = {"name": spec} if isinstance(spec, str) else spec
        config.model.norm = norm_of_file(weights.state, spec)
        config.reparam = ()
        model = build(config)
        _check_settings(path, config, model)
    found = convert.loosely_from_torch(model, weights.state, image_shape)
    title = f"{path} ({', '.join(filter(None, (found.layout, weights.taken)))})"
    dropped = {**weights.left, **found.dropped}
    end = schedule_end(model)
    return Source(title, found.arrays, end, foreign=found.foreign, dropped=dropped)


def norm_of_file(state: Mapping[str, Any], norm: Mapping[str, Any]) -> dict[str, Any]:
    """The norm of a model that has the arrays of the file, as near as can be to ours.

    Args:
      norm: of the model, a dict with `name`.
    """
    kind = convert.norm_kind(state)
    if kind is None:
        if norm["name"] not in PROGRESSIVE:
            return dict(norm)
        inner = norm.get("layer_norm", "layer_norm")
        return {"name": inner} if isinstance(inner, str) else dict(inner)
    like = norm if norm["name"] in PROGRESSIVE else {"name": kind}
    return {"decay_steps": 1, **convert.rebuilt_norm(like, kind, state)}


def _check_settings(path: Path, config: Any, model: nn.Module) -> None:
    """What config.json says of the model is what the config of the run says of it."""
    for field, value, before in settle(config, model, published_settings(path)):
        if field.startswith("model.") and not field.startswith("model.norm."):
            raise UserError(
                f"config.json beside {path} says {field}={value}, the config of the "
                f"run {before}: set --config.{field}={value}"
            )
