"""From a config to an optax transformation."""

import functools
import re
from typing import Any

import jax
import optax

from normjax.core.errors import UserError, one_of
from normjax.core.scanned import is_scanned
from normjax.optim.clip import adaptive_clip
from normjax.optim.project import normalize_and_project

OPTIMIZERS = {
    "adamw": lambda rate, config, decayed: optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=decayed,
    ),
    "lion": lambda rate, config, decayed: optax.lion(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=decayed,
    ),
    "sgd": lambda rate, config, decayed: optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(rate, momentum=config.beta1, nesterov=True),
    ),
}

NO_DECAY = {
    "pos_embed",
    "cls_token",
    "positional_encoding",
    "relative_position_bias",
}


def learning_rate(config: Any, total_steps: int) -> optax.Schedule:
    """Linear warmup to `lr`, then a cosine to `lr * final_lr_fraction` at the end.

    Args:
      config: with `lr, warmup_fraction, final_lr_fraction`.
      total_steps: optimizer updates of the whole run.
    """
    warmup = round(config.warmup_fraction * total_steps)
    if not 0 <= warmup < total_steps:
        rule = "must leave some of the run: 0 <= warmup_fraction < 1"
        raise UserError(f"config.optim.warmup_fraction={config.warmup_fraction} {rule}")
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.lr,
        peak_value=config.lr,
        warmup_steps=warmup,
        decay_steps=total_steps,
        end_value=config.lr * config.final_lr_fraction,
    )


def build(
    config: Any, total_steps: int, scanned: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """The gradient transformation that `config` describes.

    In order: parameters whose path does not match `trainable` are left out of
    everything; gradients are clipped unit by unit to `adaptive_clip` of the weights,
    then their global norm to `clip_norm` (0: not); `name` is one of `OPTIMIZERS`;
    `project_weights` brings weights back to their initial norm. Weight decay applies
    to arrays of two or more dims that are no tables of positions.

    Args:
      config: with `name, lr, warmup_fraction, final_lr_fraction, weight_decay, beta1,
        beta2, clip_norm, trainable`, and perhaps `adaptive_clip, project_weights`.
      total_steps: optimizer updates of the whole run.
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).

    Raises:
      UserError: unknown optimizer, a pattern that is no regular expression, or a
        warmup that leaves nothing of the run.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(one_of("config.optim.name", config.name, OPTIMIZERS))
    try:
        trainable = re.compile(config.trainable)
    except re.error as error:
        raise UserError(
            f"config.optim.trainable {config.trainable!r}: {error}"
        ) from None
    rate = learning_rate(config, total_steps)
    decayed = functools.partial(_decayed, scanned)
    steps: list[Any] = [OPTIMIZERS[config.name](rate, config, decayed)]
    if config.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.get("adaptive_clip"):
        steps.insert(0, adaptive_clip(config.adaptive_clip, scanned=scanned))
    if config.get("project_weights"):
        steps.append(normalize_and_project(scanned=scanned))
    transformation = optax.chain(*steps)
    if config.trainable == ".*":
        return transformation

    def labels(params):
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if trainable.search(path_name(path)) else "freeze",
            params,
        )
        if "train" not in jax.tree.leaves(chosen):
            pattern = f"config.optim.trainable {config.trainable!r}"
            raise UserError(f"{pattern} matches no parameter")
        return chosen

    parts: dict[Any, Any] = {"train": transformation, "freeze": optax.set_to_zero()}
    return optax.partition(parts, labels)


def updates_made(opt_state: Any, steps: jax.Array) -> jax.Array:
    """Updates that the learning rate's schedule has counted; a skipped one is none.

    Args:
      opt_state: of the optimizer.  steps: given where its rate has no schedule.
    """
    scheduled = optax.ScaleByScheduleState

    def is_scheduled(part):
        return isinstance(part, scheduled)

    parts = jax.tree.leaves(opt_state, is_leaf=is_scheduled)
    return next((part.count for part in parts if is_scheduled(part)), steps)


def path_name(path: tuple) -> str:
    """ "blocks_0/mlp/fc1/kernel" of a key path."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _decayed(scanned: tuple[str, ...], params: Any) -> Any:
    def decays(path, x):
        rank = x.ndim - is_scanned(path_name(path), scanned)
        return rank > 1 and path[-1].key not in NO_DECAY

    return jax.tree_util.tree_map_with_path(decays, params)
