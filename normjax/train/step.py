"""One optimizer update, as a pure function of (state, batch)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from normjax.core.collections import (
    DIAGNOSTICS,
    LOSSES,
    OVERWRITE,
    PARAMS,
    hold_counters,
)
from normjax.data.mix import mix, one_hot_smooth
from normjax.train.state import TrainState

Batch = Mapping[str, jax.Array]


class Recipe(NamedTuple):
    """What a step does besides the model and the optimizer.

    Attributes:
      num_classes: width of the logits.
      mean, std: of the pixels scaled to 0..1, one a channel or one for all.
      label_smoothing, mixup_alpha, cutmix_alpha: 0 is off.
      microbatches: parts that a batch is worked through in, one after the other.
      ema_decay: of the running average of parameters; 0 is off.
      auxiliary_loss_weight: factor on the sum of what layers sow into "losses".
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    microbatches: int = 1
    ema_decay: float = 0.0
    auxiliary_loss_weight: float = 1.0


def normalize_pixels(image: jax.Array, mean, std) -> jax.Array:
    """uint8 [B, H, W, C] -> float32, (image / 255 - mean) / std per channel."""
    wide = (1, 1, 1, -1)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(wide) for v in (mean, std))
    return (image.astype(jnp.float32) / 255 - mean) / std


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    recipe: Recipe,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The update as a function (state, batch) -> (state, metrics), to be jitted.

    Collections of the model come back as the forward pass leaves them;
    `_overwrite_with_gradient` gets its gradient as its new value and stays out of the
    optimizer, the clipping and the gradient norm. Schedule counters inside the model
    tick once per update, whatever the number of microbatches.

    batch: {"image": uint8 [B, H, W, C], "label": int32 [B]}.
    metrics: float32 scalars "loss", "accuracy" (of the mixed images against the larger
    label), "grad_norm", "lr", "auxiliary_loss" where layers sow into "losses", and what
    the model sows into "diagnostics".
    """

    gradient = jax.value_and_grad(_loss_of(model, recipe), has_aux=True)

    def microbatch(params, carry, part):
        """Gradient of one part; `carry` threads the state of the model through."""
        model_state, overwrite = carry
        images, targets, key = part
        (loss, (new, scalars)), (grads, overwrite) = gradient(
            (params, overwrite), model_state, images, targets, key
        )
        return (new, overwrite), (grads, {"loss": loss, **scalars})

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        mix_key, dropout_key = jax.random.split(key)
        images, targets = _examples(batch, recipe, mix_key)
        carry, count = _separate(state.model_state), recipe.microbatches
        if count == 1:
            part = (images, targets, dropout_key)
            carry, (grads, metrics) = microbatch(state.params, carry, part)
        else:
            keys = jax.random.split(dropout_key, count)
            parts = (_split(images, count), _split(targets, count), keys)
            carry, (grads, metrics) = _accumulate(
                microbatch, state.params, carry, parts
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["lr"] = jnp.asarray(schedule(state.step), jnp.float32)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            model_state={**carry[0], **carry[1]},
            opt_state=opt_state,
            ema=_average(state.ema, params, state.step, recipe.ema_decay),
        )
        return new_state, metrics

    return train_step


def _separate(model_state):
    """What the forward pass writes and what the backward pass writes."""
    overwrite = {k: v for k, v in model_state.items() if k == OVERWRITE}
    return {k: v for k, v in model_state.items() if k != OVERWRITE}, overwrite


def _loss_of(model: nn.Module, recipe: Recipe):
    """The loss as a function of ((params, overwrite), model_state, batch, key)."""

    def loss_fn(trained, model_state, images, targets, key):
        params, overwrite = trained
        variables = {PARAMS: params, **model_state, **overwrite}
        logits, new = model.apply(
            variables,
            images,
            train=True,
            mutable=[*model_state, DIAGNOSTICS, LOSSES],
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy(logits, targets)
        hit = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
        new = dict(new)
        scalars = _diagnostics(new.pop(DIAGNOSTICS, {}))
        scalars["accuracy"] = jnp.mean(hit.astype(jnp.float32))
        loss = jnp.mean(losses)
        terms = jax.tree.leaves(new.pop(LOSSES, {}))
        if terms:
            scalars["auxiliary_loss"] = jnp.sum(jnp.stack(terms))
            loss += recipe.auxiliary_loss_weight * scalars["auxiliary_loss"]
        return loss, (new, scalars)

    return loss_fn


def _examples(batch: Batch, recipe: Recipe, key: jax.Array):
    """Normalised, mixed images [B, H, W, C] and soft targets [B, K]."""
    images = normalize_pixels(batch["image"], recipe.mean, recipe.std)
    targets = one_hot_smooth(batch["label"], recipe.num_classes, recipe.label_smoothing)
    mixup, cutmix = recipe.mixup_alpha, recipe.cutmix_alpha
    return mix(key, images, targets, mixup_alpha=mixup, cutmix_alpha=cutmix)


def _accumulate(microbatch, params, carry, parts):
    """Mean gradient and metrics over the microbatches, by a scan.

    Args:
      parts: (images, targets, keys), each [M, ...].
    """
    before, count = carry[0], len(parts[2])

    def body(scanned, part):
        (model_state, overwrite), sums = scanned
        carry = (hold_counters(before, model_state), overwrite)
        carry, result = microbatch(params, carry, part)
        return (carry, jax.tree.map(lambda a, b: a + b / count, sums, result)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(microbatch, params, carry, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (carry, sums), _ = jax.lax.scan(body, (carry, zeros), parts)
    return carry, sums


def _split(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [M, B / M, ...]; example i goes to microbatch i % M.

    So every device keeps its own examples.
    """
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)


def _average(ema, params, step, decay):
    if ema is None:
        return None
    # A short memory at the start: the first parameters are noise.
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)


def _diagnostics(sown: Any) -> dict[str, jax.Array]:
    """Mean over the layers of every scalar that was sown under one name."""
    by_name: dict[str, list[jax.Array]] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(sown):
        by_name.setdefault(path[-2].key, []).append(value)
    return {name: jnp.mean(jnp.stack(v)) for name, v in by_name.items()}
