"""One optimizer update, as a pure function of (state, batch)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax import optim
from normjax.core.collections import (
    BATCH_STATS,
    DEFERRED,
    DIAGNOSTICS,
    LOSSES,
    OVERWRITE,
    PARAMS,
    TRAINING,
    hold_counters,
)
from normjax.core.errors import UserError
from normjax.devices.mesh import join_rows, split_rows
from normjax.norms.deferred import moved_together
from normjax.tasks import Objective
from normjax.tasks.base import Batch, compares_rows
from normjax.train.penalties import Penalty, watched, weighed
from normjax.train.state import TrainState

BAD_GRADIENT, SKIPPED = "bad_gradient", "skipped"
"""Metrics: the number of the first parameter whose gradient is not finite (-1: none),
and whether the update was left out."""


STATISTICS_LAG = 9.0
"""Updates that running statistics lag behind the parameters: of momentum 0.9."""


class Recipe(NamedTuple):
    """What a step does besides the model, the objective and the optimizer.

    Attributes:
      microbatches: parts that a batch is worked through in, one after the other; a loss
        that compares rows stays that of the whole batch.
      ema_decay: of the running average of parameters and batch statistics; 0 is off.
      auxiliary_loss_weight: factor on the sum of what layers sow into "losses".
      deferred_batch_stats: running statistics follow the whole batch, not each part.
      skip_nonfinite: leave the update out if its loss or gradient is not finite: all
        but `step` and `taken` stays.
      perturb: (params, gradients) -> where the gradient is taken again; see
        `optim.perturbation`. Of each microbatch by itself. Batch statistics and metrics
        are those of the first pass; dropout draws the same in both.
      penalties: further terms of the loss, see `penalties`.
    """

    microbatches: int = 1
    ema_decay: float = 0.0
    auxiliary_loss_weight: float = 1.0
    skip_nonfinite: bool = False
    deferred_batch_stats: bool = False
    perturb: Callable[[Any, Any], Any] | None = None
    penalties: tuple[Penalty, ...] = ()


Gradients = Callable[..., tuple[dict[str, Any], Any, dict[str, jax.Array]]]
"""What `make_gradients` gives."""


def make_train_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    recipe: Recipe,
    gradients: Gradients | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The update as a function (state, batch) -> (state, metrics), to be jitted.

    Collections of the model come back as the forward pass leaves them;
    `_overwrite_with_gradient` gets its gradient as its new value and stays out of the
    optimizer, the clipping and the gradient norm. Schedule counters inside the model
    tick once per update, whatever the number of microbatches.

    Args:
      model: has the `apply` of a Flax module, the memory of a state as `TRAINING`.
      gradients: default: `make_gradients` of the model.

    batch: what the objective takes.
    metrics: float32 scalars "loss", those of the objective, "grad_norm", "lr" (of this
    update: its schedule counts those that were applied), `BAD_GRADIENT`, `SKIPPED` if
    the recipe skips, "auxiliary_loss" where layers sow into "losses", and what the
    model sows into "diagnostics".
    """
    gradients = gradients or make_gradients(model, objective, recipe)

    def train_step(state: TrainState, batch: Batch):
        example_key, dropout_key = keys_of(state)
        inputs, targets = objective.examples(batch, example_key)
        made = optim.updates_made(state.opt_state, state.step)
        model_state, grads, metrics = gradients(
            state.params, state.carried(), inputs, targets, dropout_key, made
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"], metrics[BAD_GRADIENT] = _norm_and_first_bad(grads)
        metrics["lr"] = jnp.asarray(schedule(made), jnp.float32)
        decay = _ema_decay(made, recipe.ema_decay)
        new_state = state.replace(
            step=state.step + 1,
            taken=state.taken and state.taken.after_update(),
            params=params,
            memory=model_state.pop(TRAINING, None),
            model_state=model_state,
            opt_state=opt_state,
            ema=_average(state.ema, params, decay),
            ema_stats=_average(
                state.ema_stats, model_state.get(BATCH_STATS), _less_lag(decay)
            ),
        )
        if recipe.skip_nonfinite:
            sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            old = state.replace(step=new_state.step, taken=new_state.taken)
            new_state = jax.tree.map(partial(jnp.where, sound), new_state, old)
            metrics[SKIPPED] = 1.0 - sound
        return new_state, metrics

    return train_step


def keys_of(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """Keys of the next update: of its examples, and of dropout."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    example_key, dropout_key = jax.random.split(key)
    return example_key, dropout_key


def _norm_and_first_bad(grads: Any) -> tuple[jax.Array, jax.Array]:
    """The Euclidean norm, and the number of the first leaf that is not finite or -1."""
    squares = [optax.tree.norm(g, squared=True) for g in jax.tree.leaves(grads)]
    bad = ~jnp.isfinite(jnp.stack(squares))
    first = jnp.where(jnp.any(bad), jnp.argmax(bad), -1)
    return jnp.sqrt(sum(squares, jnp.float32(0))), first.astype(jnp.float32)


def make_gradients(
    model: Any, objective: Objective, recipe: Recipe, share: float = 1.0
) -> Gradients:
    """(params, model_state, inputs, targets, key, made) -> (state, grads, metrics).

    The gradient of `share` times the loss, over all microbatches; metrics are those of
    the whole loss.

    Where the loss compares rows, it is that of all parts together, see `_cached`.

    Args:
      share: what part of the loss the examples at hand are.

    inputs, targets: of `Objective.examples`.  key: of dropout.  made: updates so far,
    which count in what is scheduled.
    """
    if recipe.microbatches > 1 and compares_rows(objective):
        return _cached(model, objective, recipe, share)
    loss_fn = _loss_of(model, objective, recipe, share)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def microbatch(params, made, carry, part):
        """Gradient of one part; `carry` threads the state of the model through."""
        part = made, *part
        model_state, overwrite = carry
        (_, (new, metrics)), (grads, written) = gradient(
            (params, overwrite), model_state, *part
        )
        if recipe.perturb is not None:
            there = recipe.perturb(params, grads)
            _, (grads, written) = gradient((there, overwrite), model_state, *part)
        moments = new.pop(DEFERRED, {})
        return (new, written), (grads, metrics), moments

    def gradients(params, model_state, inputs, targets, key, made):
        carry, count = _separate(model_state), recipe.microbatches
        one = partial(microbatch, params, made)
        if count == 1:
            part = (inputs, targets, key)
            carry, (grads, metrics), _ = one(carry, part)
        else:
            keys = jax.random.split(key, count)
            parts = (*split_rows((inputs, targets), count), keys)
            deferred = recipe.deferred_batch_stats
            summed = _accumulate(one, carry, parts, deferred)
            carry, (grads, metrics) = summed
        return {**carry[0], **carry[1]}, grads, metrics

    return gradients


class _PulledBack(NamedTuple):
    """The loss 0, whose gradient by the outputs of a part are its targets."""

    def loss(self, outputs: Any, targets: Any):
        products = jax.tree.map(lambda x, ct: jnp.sum(x * ct), outputs, targets)
        product = sum(jax.tree.leaves(products))
        return product - jax.lax.stop_gradient(product), {}


def _cached(
    model: Any, objective: Objective, recipe: Recipe, share: float
) -> Gradients:
    """`make_gradients` of a loss of the whole batch (GradCache; Gao et al., 2021).

    All parts go through the model without being differentiated; the loss of all outputs
    gives the gradient of these, which each part, run again with the same dropout, pulls
    back: a forward pass more, in the memory of a part. Both passes thread the state of
    the model through the parts alike, and that of the second one stays.
    """
    if recipe.perturb is not None:
        raise UserError(
            "config.optim.sam_rho with config.microbatches: of a loss that compares "
            "all rows of a batch there is no gradient of a part"
        )
    count = recipe.microbatches
    pull = make_gradients(model, _PulledBack(), recipe, share)  # type: ignore[arg-type]

    def outputs_of(params, model_state, inputs, key):
        state, overwrite = _separate(model_state)
        if overwrite:
            raise UserError(
                "config.microbatches: the loss compares all rows of a batch, and "
                "scales that each part moves would make two passes over it differ"
            )

        def forward(threaded, part):
            (x, known), own = part
            outputs, new = model.apply(
                {PARAMS: params, **hold_counters(state, threaded)},
                x,
                train=True,
                **known,
                mutable=[*state, DIAGNOSTICS, LOSSES],
                rngs={"dropout": own},
            )
            return {name: new[name] for name in state}, outputs

        parts = split_rows(inputs, count), jax.random.split(key, count)
        return join_rows(jax.lax.scan(forward, state, parts)[1])

    def gradients(params, model_state, inputs, targets, key, made):
        outputs = outputs_of(params, model_state, inputs, key)
        of_all = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, scalars), cotangents = of_all(outputs, targets)
        cotangents = jax.tree.map(
            lambda ct: count * ct, cotangents
        )  # parts are averaged
        state, grads, metrics = pull(params, model_state, inputs, cotangents, key, made)
        return state, grads, {**metrics, "loss": loss + metrics["loss"], **scalars}

    return gradients


def _separate(model_state):
    """What the forward pass writes and what the backward pass writes."""
    overwrite = {k: v for k, v in model_state.items() if k == OVERWRITE}
    return {k: v for k, v in model_state.items() if k != OVERWRITE}, overwrite


def _loss_of(model: Any, objective: Objective, recipe: Recipe, share: float):
    """share * loss, of ((params, overwrite), model_state, made, *batch, key)."""

    parted = recipe.deferred_batch_stats and recipe.microbatches > 1
    deferred = [DEFERRED] if parted else []

    def loss_fn(trained, model_state, made, inputs, targets, key):
        (params, overwrite), (x, known) = trained, inputs
        variables = {PARAMS: params, **model_state, **overwrite}
        with watched(recipe.penalties):
            outputs, new = model.apply(
                variables,
                x,
                train=True,
                **known,
                mutable=[*model_state, DIAGNOSTICS, LOSSES, *deferred],
                rngs={"dropout": key},
            )
        new = dict(new)
        loss, scalars = objective.loss(outputs, targets)
        scalars |= _diagnostics(new.pop(DIAGNOSTICS, {}))
        penalty, terms = weighed(recipe.penalties, made, new.pop(LOSSES, {}))
        if recipe.penalties:
            scalars["penalty"] = penalty
            loss += penalty
        if terms:
            scalars["auxiliary_loss"] = jnp.sum(_joined(terms))
            loss += recipe.auxiliary_loss_weight * scalars["auxiliary_loss"]
        return share * loss, (new, {"loss": loss, **scalars})

    return loss_fn


def _accumulate(microbatch, carry, parts, deferred):
    """Mean gradient and metrics over the microbatches, by a scan.

    Args:
      parts: (inputs, targets, keys), trees of arrays [M, ...].
      deferred: running statistics move once, by the moments of all parts.
    """
    before, count = carry[0], len(parts[2])

    def body(scanned, part):
        (model_state, overwrite), sums = scanned
        carry = (hold_counters(before, model_state), overwrite)
        carry, result, moments = microbatch(carry, part)
        sums = jax.tree.map(lambda a, b: a + b / count, sums, result)
        return (carry, sums), moments

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes, _ = jax.eval_shape(microbatch, carry, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (carry, sums), moments = jax.lax.scan(body, (carry, zeros), parts)
    if deferred and BATCH_STATS in carry[0]:
        state, overwrite = carry
        stats = moved_together(state[BATCH_STATS], moments)
        carry = {**state, BATCH_STATS: stats}, overwrite
    return carry, sums


def _ema_decay(made: jax.Array, decay: float) -> jax.Array:
    """A short memory at the start: the first parameters are noise."""
    return jnp.minimum(decay, (1.0 + made) / (10.0 + made))


def _less_lag(decay: jax.Array) -> jax.Array:
    """The decay of an average that is `STATISTICS_LAG` updates less behind.

    An average lags decay / (1 - decay) updates behind what it is of. Running statistics
    lag behind the parameters already; averaged with this decay they are as far behind
    as the averaged parameters.
    """
    lag = jnp.maximum(decay / (1 - decay) - STATISTICS_LAG, 0)
    return lag / (1 + lag)


def _average(ema: Any, new: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * new; of counters the new ones."""
    if ema is None:
        return None

    def move(a, b):
        if not jnp.issubdtype(b.dtype, jnp.floating):
            return b
        return (decay * a + (1 - decay) * b).astype(b.dtype)

    return jax.tree.map(move, ema, new)


def _diagnostics(sown: Any) -> dict[str, jax.Array]:
    """Mean over the layers of every scalar that was sown under one name."""
    by_name: dict[str, list[jax.Array]] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(sown):
        by_name.setdefault(path[-2].key, []).append(value)
    return {name: jnp.mean(_joined(v)) for name, v in by_name.items()}


def _joined(values: list[jax.Array]) -> jax.Array:
    """Scalars, and vectors of them that scanned layers give, as one vector."""
    return jnp.concatenate([jnp.ravel(value) for value in values])
