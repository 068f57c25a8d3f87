"""Latency of models folded, unfolded, and without norms: the floor of folding."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from normjax import fusion, models
from normjax.core.compiler import jit
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

DEFAULT = ("deit_tiny_prepbn", "deit_tiny:batch_norm", "resnet18", "resnet50")
SIDE, BATCHES, CLASSES = 224, (1, 16), 1000
ROUNDS = 15
FLOOR = "norms removed"


def fold_command(argv: Sequence[str]) -> int:
    """`fold [PRESET[:NORM] ...]`: float32, 224 pixels, in turns; ratios to the floor.

    The models of one preset and batch take turns; each preset is measured by itself.
    """
    rows = []
    for name in argv[1:] or DEFAULT:
        variants = variants_of(name)
        for batch in BATCHES:
            seconds = alternate(_calls(variants, batch), ROUNDS)
            rows.append(row_of(name, batch, seconds))
    columns = ("model", "batch", *(f"{kind}, ms" for kind in variants))
    title = f"{SIDE} x {SIDE}, float32, median of {ROUNDS}"
    report.table(title, (*columns, "unfolded / floor", "folded / floor"), rows)
    return 0


def row_of(name: str, batch: int, seconds: Mapping[str, float]) -> tuple:
    """(model, batch, ms of each, unfolded / floor, folded / floor)."""
    floor = seconds[FLOOR]
    ratios = (seconds[kind] / floor for kind in ("unfolded", "folded"))
    return (name, batch, *(1e3 * value for value in seconds.values()), *ratios)


def variants_of(name: str, side: int = SIDE) -> dict[str, tuple[Any, Any]]:
    """(model, variables) unfolded, folded, and with the norms removed.

    Args:
      name: preset, or preset:norm for another norm than the preset's.

    Raises:
      UserError: unknown preset or norm.
    """
    preset, _, norm = name.partition(":")
    if preset not in models.PRESETS:
        raise UserError(one_of("model", preset, models.PRESETS))
    images = jax.ShapeDtypeStruct((1, side, side, 3), "float32")

    def made(**changes):
        model = models.build(preset, num_classes=CLASSES, **changes)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        return model, dict(_drawn(shapes))

    unfolded = made(**({"norm": norm} if norm else {}))
    with warnings.catch_warnings():
        # Nothing was trained: decays stand at their start.
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded = fusion.fold(*unfolded)
    return {"unfolded": unfolded, "folded": folded, FLOOR: made(norm="none")}


def _drawn(shapes: Any) -> Any:
    """Small weights: without norms, those of an initialisation would overflow."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        (1e-2 * jax.random.uniform(key, leaf.shape)).astype(leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def _calls(variants: Mapping[str, tuple[Any, Any]], batch: int) -> dict[str, Callable]:
    images = jax.random.normal(jax.random.key(2), (batch, SIDE, SIDE, 3))
    return {
        kind: functools.partial(jit(model.apply), variables, images)
        for kind, (model, variables) in variants.items()
    }
