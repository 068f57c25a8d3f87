"""Exact algebra on (module tree, variables): y = W (a x + c) + b = (W a) x + (W c + b).

Models tell where their norms sit (`fold_sites`), norms which affine map they are at
evaluation (`inference_affine`); nothing here knows a model or a norm.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import PARAMS
from normjax.core.folding import FoldSite
from normjax.fusion.merge import merge, reparameterized
from normjax.fusion.rewrite import mutable_tree, remove, rewritten, subtree
from normjax.norms import InferenceAffine, NoNorm


class Fold(NamedTuple):
    """What happens to one norm or reparameterization.

    Attributes:
      path: of its variables.  norm: name of its class.
      into: layers that absorb it; empty if it stays.
      reason: why it stays; empty if it is folded.
    """

    path: str
    norm: str
    into: tuple[str, ...]
    reason: str


def plan(model: nn.Module, variables: Mapping[str, Any]) -> list[Fold]:
    """What `fold` does with each reparameterized layer and each norm of `model`."""
    found = reparameterized(model, variables)
    merges = [Fold(path, kind, (path,), "") for path, kind in found.items()]
    model, variables = merge(*_unrolled(model, variables))
    return merges + [_judge(site, variables)[0] for site in _sites(model)]


def fold(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Merge every norm that is affine at evaluation into its neighbours.

    Exact up to rounding; computed in float64 and stored in the dtype of the weights.
    Scanned layers are unrolled and reparameterized weights merged first (see `merge`).
    Norms that cannot be folded stay as they are (see `plan`). A model without any that
    can is returned as it is, so folding twice changes nothing.

    Args:
      model: a Flax module with `fold_sites`.
      variables: its `{"params": ..., "batch_stats": ...}`.

    Returns:
      (folded model, folded variables); collections that became empty are dropped.

    Raises:
      ValueError: the model does not say where its norms sit.
    """
    model, variables = merge(*_unrolled(model, variables))
    folded = {name: mutable_tree(tree) for name, tree in variables.items()}
    identities, biased = {}, set()
    for site in _sites(model):
        verdict, affine = _judge(site, folded)
        if affine is None:
            continue
        for path in site.readers:
            if _into_reader(subtree(folded[PARAMS], path), affine, site.scale):
                biased.add(path)
        if not site.readers:
            path = verdict.into[0]
            if _into_writer(subtree(folded[PARAMS], path), affine):
                biased.add(path)
        for tree in folded.values():
            remove(tree, site.path)
        identities[site.path] = NoNorm()
    if not identities:
        return model, dict(variables)
    folded_model = rewritten(model, identities, biased)
    return folded_model, {name: tree for name, tree in folded.items() if tree}


def _unrolled(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model and its variables, with a module of its own for every layer."""
    unrolled: Any = getattr(model, "unrolled", None)
    return unrolled(variables) if unrolled else (model, variables)


def _sites(model: nn.Module) -> list[FoldSite]:
    if not hasattr(model, "fold_sites"):
        raise ValueError(f"{type(model).__name__} does not say where its norms sit")
    return [site for site in model.fold_sites() if not isinstance(site.norm, NoNorm)]


def _judge(site: FoldSite, variables) -> tuple[Fold, InferenceAffine | None]:
    name = type(site.norm).__name__
    into = site.readers or ((site.writer,) if site.writer else ())
    affine, reason = None, ""
    if not hasattr(site.norm, "inference_affine"):
        reason = "computes its statistics from the input at evaluation too"
    elif site.obstacle or not into:
        reason = site.obstacle or "no linear layer reads its output alone"
    else:
        own = {c: subtree(tree, site.path) for c, tree in variables.items()}
        own = {c: tree for c, tree in own.items() if tree is not None}
        affine = site.norm.inference_affine(own)
        reason = "" if affine else "has no affine form as it is configured"
    return Fold(site.path, name, () if reason else into, reason), affine


def _into_reader(linear: dict, affine: InferenceAffine, factor: float) -> bool:
    """W' = W a, b' = b + factor * W c. True if the layer had no bias before."""
    kernel = np.asarray(linear["kernel"], np.float64)
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    shift = np.einsum("i,kio->o", factor * affine.shift, taps)
    dtype, created = linear["kernel"].dtype, "bias" not in linear
    linear["kernel"] = jnp.asarray(kernel * affine.scale[:, None], dtype)
    bias = 0.0 if created else np.asarray(linear["bias"], np.float64)
    linear["bias"] = jnp.asarray(bias + shift, dtype)
    return created


def _into_writer(linear: dict, affine: InferenceAffine) -> bool:
    """W' = a W, b' = a b + c. True if the layer had no bias before."""
    dtype, created = linear["kernel"].dtype, "bias" not in linear
    kernel = np.asarray(linear["kernel"], np.float64)
    bias = 0.0 if created else np.asarray(linear["bias"], np.float64)
    linear["kernel"] = jnp.asarray(kernel * affine.scale, dtype)
    linear["bias"] = jnp.asarray(bias * affine.scale + affine.shift, dtype)
    return created
