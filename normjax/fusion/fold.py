"""Exact algebra on (module tree, variables): y = W (a x + c) + b = (W a) x + (W c + b).

Models tell where their norms sit (`fold_sites`), norms which affine map they are at
evaluation (`inference_affine`); nothing here knows a model or a norm.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import PARAMS
from normjax.core.folding import FoldSite
from normjax.fusion.merge import merge, reparameterized
from normjax.fusion.rewrite import (
    is_linear,
    mutable_tree,
    remove,
    rewritten,
    subtree,
    unrolled,
)
from normjax.norms import InferenceAffine, NoNorm, reads_batch


class Fold(NamedTuple):
    """What happens to one norm or reparameterization.

    Attributes:
      path: of its variables.  norm: name of its class.
      into: layers that absorb it; empty if it stays.
      reason: why it stays; empty if it is folded.
      remains: class of the part that stays nevertheless, without parameters; empty if
        none does.
      decay: (updates it has made, updates that its decay takes) of a norm that is
        still on its way to what it is at evaluation; None of all others.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> fold = fusion.plan(model, variables)[0]
      >>> fold.path, fold.norm, fold.into, fold.reason
      ('stem/unit/norm', 'BatchNorm', ('stem/unit/conv',), '')
    """

    path: str
    norm: str
    into: tuple[str, ...]
    reason: str
    remains: str = ""
    decay: tuple[int, int] | None = None


class UnfinishedDecay(UserWarning):
    """What is folded is not yet what the model trains with.

    `fold` warns of a PRepBN before the end of its decay.

    Example:
      >>> import warnings
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build(
      ...     "resnet",
      ...     num_classes=10,
      ...     depths=(1,),
      ...     widths=(8,),
      ...     norm={"name": "prepbn", "decay_steps": 900},
      ... )
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     folded = fusion.fold(model, variables)
      >>> caught[0].category is fusion.UnfinishedDecay
      True
    """


def plan(model: nn.Module, variables: Mapping[str, Any]) -> list[Fold]:
    """What `fold` does with each reparameterized layer and each norm of `model`.

    Args:
      model: a Flax module with `fold_sites`.
      variables: its `{"params": ..., "batch_stats": ...}`.

    Raises:
      ValueError: the model does not say where its norms sit.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> [fold.into for fold in fusion.plan(model, variables)]
      [('stem/unit/conv',), ('blocks_0_0/unit_0/conv',), ('blocks_0_0/unit_1/conv',)]
    """
    found = reparameterized(model, variables)
    merges = [Fold(path, kind, (path,), "") for path, kind in found.items()]
    model, variables = unrolled(*merge(model, variables))
    return merges + [_judge(site, variables)[0] for site in _sites(model)]


def fold(
    model: nn.Module, variables: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Merge every norm that is affine at evaluation into its neighbours.

    Exact up to rounding; computed in float64 and stored in the dtype of the weights.
    Scanned layers are unrolled and reparameterized weights merged first (see `merge`).
    Norms that cannot be folded stay as they are (see `plan`). A model without any that
    can is returned as it is, so folding twice changes nothing. A PRepBN before the end
    of its decay is folded as what it is at evaluation, with a warning
    (`UnfinishedDecay`) that says from which step on that is what it trains with.

    Args:
      model: a Flax module with `fold_sites`.
      variables: its `{"params": ..., "batch_stats": ...}`.

    Returns:
      (folded model, folded variables); collections that became empty are dropped.

    Raises:
      ValueError: the model does not say where its norms sit.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> logits, variables = model.init_with_output(jax.random.key(1), images)
      >>> folded, new = fusion.fold(model, variables)
      >>> difference = abs(jax.jit(folded.apply)(new, images) - logits).max()
      >>> sorted(variables), sorted(new), bool(difference < 1e-2)
      (['batch_stats', 'params'], ['params'], True)
    """
    model, variables = unrolled(*merge(model, variables))
    folded = {name: mutable_tree(tree) for name, tree in variables.items()}
    identities, biased, early = {}, set(), []
    for site in _sites(model):
        verdict, affine = _judge(site, folded)
        if affine is None:
            continue
        if verdict.decay:
            early.append(verdict)
        for path in site.readers:
            if _into_reader(subtree(folded[PARAMS], path), affine, site.scale):
                biased.add(path)
        if not site.readers:
            path = verdict.into[0]
            if _into_writer(subtree(folded[PARAMS], path), affine):
                biased.add(path)
        for tree in folded.values():
            remove(tree, site.path)
        identities[site.path] = affine.before or NoNorm()
    if not identities:
        return model, dict(variables)
    if early:
        warnings.warn(UnfinishedDecay(_unfinished(early)), stacklevel=2)
    folded_model = rewritten(model, identities, biased)
    return folded_model, {name: tree for name, tree in folded.items() if tree}


def _sites(model: nn.Module) -> list[FoldSite]:
    if not hasattr(model, "fold_sites"):
        raise ValueError(f"{type(model).__name__} does not say where its norms sit")
    return [site for site in model.fold_sites() if not isinstance(site.norm, NoNorm)]


def _unfinished(early: list[Fold]) -> str:
    """The warning; norms with schedules of their own may end at different steps."""
    (step, _), *_ = decays = [fold.decay for fold in early if fold.decay]
    end = max(end for _, end in decays)
    return (
        f"{early[0].norm} is at step {step} of its decay in {len(early)} norms "
        f"({early[0].path}, ...): the folded model leaves out what it still mixes in "
        f"while training; the fold is exact from step {end} on"
    )


def _judge(site: FoldSite, variables) -> tuple[Fold, InferenceAffine | None]:
    name = type(site.norm).__name__
    into = site.readers or ((site.writer,) if site.writer else ())
    own = {c: subtree(tree, site.path) for c, tree in variables.items()}
    own = {c: tree for c, tree in own.items() if tree is not None}
    decay = site.norm.decay(own) if hasattr(site.norm, "decay") else None
    affine, reason = None, ""
    if not hasattr(site.norm, "inference_affine"):
        reason = "computes its statistics from the input at evaluation too"
    elif reads_batch(site.norm):
        reason = "is configured to evaluate by the statistics of the batch"
    elif site.obstacle or not into:
        reason = site.obstacle or "no linear layer reads its output alone"
    elif strange := [p for p in into if not is_linear(subtree(variables[PARAMS], p))]:
        reason = f"{strange[0]} is no linear layer"
    else:
        affine = site.norm.inference_affine(own)
        reason = "" if affine else _formless(decay)
    if affine and affine.before and not site.readers:
        affine, reason = None, "its affine part comes behind another part"
    remains = type(affine.before).__name__ if affine and affine.before else ""
    into = () if reason else into
    return Fold(site.path, name, into, reason, remains, decay), affine


def _formless(decay: tuple[int, int] | None) -> str:
    until = f" before step {decay[1]}" if decay else ""
    return f"has no affine form as it is configured{until}"


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
