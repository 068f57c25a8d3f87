"""Exact metrics over a split."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax.train.step import Batch, Recipe, normalize_pixels

CALIBRATION_BINS = 15


def make_eval_step(
    apply: Callable[..., Any], recipe: Recipe
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Sums of the metrics over one batch, as a function (variables, batch) -> sums.

    Args:
      apply: `model.apply`; called with train=False and no mutable collection.

    batch: {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": bool [B]}; masked
    examples count for nothing.
    """

    def eval_step(variables, batch):
        images = normalize_pixels(batch["image"], recipe.mean, recipe.std)
        logits = apply(variables, images, train=False)
        return metric_sums(logits, batch["label"], batch["mask"])

    return eval_step


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """What `summarize` needs, summed over the valid examples.

    Args:
      logits: [B, K].  labels: int [B].  mask: bool [B].

    Returns:
      float32 sums "count", "top1", "top5", "nll" and, per bin of confidence,
      "bin_count", "bin_confidence", "bin_hits" [CALIBRATION_BINS].
    """
    weight = mask.astype(jnp.float32)
    log_p = jax.nn.log_softmax(
        jnp.where(mask[:, None], logits, 0.0).astype(jnp.float32)
    )
    own = jnp.take_along_axis(log_p, labels[:, None], axis=-1)
    # Ties and NaN count against the model: a constant output is no top-5 prediction.
    rank = jnp.sum(~(log_p < own), axis=-1) - 1
    hit = (rank < 1).astype(jnp.float32) * weight
    confidence = jnp.exp(jnp.max(log_p, axis=-1))
    bins = jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1
    one_hot = jax.nn.one_hot(bins.clip(0), CALIBRATION_BINS) * weight[:, None]
    return {
        "count": jnp.sum(weight),
        "top1": jnp.sum(hit),
        "top5": jnp.sum((rank < 5).astype(jnp.float32) * weight),
        "nll": -jnp.sum(jnp.where(mask, own[:, 0], 0.0)),
        "bin_count": jnp.sum(one_hot, axis=0),
        "bin_confidence": confidence @ one_hot,
        "bin_hits": hit @ one_hot,
    }


def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
    """Metrics from their sums.

    Returns:
      "top1", "top5" (fractions), "nll" (nats an example) and "ece", the expected
      calibration error sum_b n_b / n * |accuracy_b - confidence_b| over equal bins of
      the largest probability (Guo et al., 2017).
    """
    sums = jax.device_get(dict(sums))
    count = sums["count"]
    gap = abs(sums["bin_hits"] - sums["bin_confidence"]).sum()
    means = {name: float(sums[name] / count) for name in ("top1", "top5", "nll")}
    return {**means, "ece": float(gap / count)}


def evaluate(
    eval_step: Callable[[Any, Batch], dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Metrics of `variables` over all `batches` (see `summarize`)."""
    sums: Any = None
    for batch in batches:
        new = eval_step(variables, batch)
        sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
    return summarize(sums)
