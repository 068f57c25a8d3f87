"""AdaGrad and Adam of clipped gradients."""

from typing import Any

import jax.numpy as jnp
import optax

from normjax.optim.base import OPTIMIZERS
from normjax.optim.matrices import check_choice, form_b
from normjax.optim.per_parameter import per_parameter, scheduled, zeros
from normjax.optim.transformations.component_clip import clip_to_norm, component_clip

CLIPPINGS = ("local", "elementwise", "global", "none")


def _clipping(
    kind: str, clip: float, scanned: tuple[str, ...]
) -> optax.GradientTransformation:
    """Of gradients: of each array, each entry, or all together."""
    check_choice("clipping", kind, CLIPPINGS)
    if kind == "local":
        return component_clip(clip, scanned=scanned)
    if kind == "elementwise":
        return optax.clip(clip)
    if kind == "none":
        return optax.identity()

    def update(updates, state, params=None):
        del params
        return clip_to_norm(updates, clip), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@OPTIMIZERS.register("clipped_adagrad")
def clipped_adagrad(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    epsilon: float = 1e-10,
    weight_decay: float = 0.05,
    clipping: str = "local",
    clip: float = 1.0,
    delay: bool = False,
    reweight: float = 1.0,
    initial: float | None = None,
    as_published: bool = False,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """AdaGrad of clipped gradients h (Chezhegov et al., 2024).

        v <- v + reweight h^2
        w <- w - rate h / (sqrt(v) + epsilon)        w <- w (1 - rate weight_decay)

    or, with `delay`, by the v before.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      epsilon: added to the root.  weight_decay: times the rate.  clip: the limit.
      clipping: "local", g min(1, clip / (|g| + 1e-6)) of each array; "global", of all
        together; "elementwise", each entry to +-clip; "none".
      delay: the v before.  reweight: of h^2 in v.
      initial: v at first; None: 0, or 1e-4 with `delay`.
      as_published: with `delay`, the step is that of the h before, at first 0.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> adagrad = optimizers.clipped_adagrad(0.5, weight_decay=0.0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = adagrad.update(params, adagrad.init(params), params)
      >>> print(updates.round(3))
      [-0.5  0.5]
    """
    at_first = (1e-4 if delay else 0.0) if initial is None else initial
    published = delay and as_published
    before = zeros(*["previous"] * published)

    def start(parameter, p):
        return {"v": jnp.full_like(p, at_first)} | before(parameter, p)

    def step(parameter, t, g, p, kept):
        h = kept["previous"] if published else g
        v = kept["v"] + reweight * h * h
        by = kept["v"] if delay and not published else v
        now = {"v": v, "previous": g} if published else {"v": v}
        return h / (jnp.sqrt(by) + epsilon), now

    steps = per_parameter(start, step, scanned=scanned)
    direction = optax.chain(_clipping(clipping, clip, scanned), steps)
    return scheduled(direction, rate, weight_decay, decayed, after=True)


@OPTIMIZERS.register("clipped_adam")
def clipped_adam(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.05,
    clipping: str = "local",
    clip: float = 1.0,
    correct_bias: bool | None = None,
    delay: bool = False,
    reweight: float = 1.0,
    initial: float | None = None,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam of clipped gradients h (Chezhegov et al., 2024).

        m <- beta1 m + (1 - beta1) h        v <- beta2 v + (1 - beta2) reweight h^2
        w <- w - rate c m / (sqrt(v) + epsilon)        w <- w (1 - rate weight_decay)
        c = sqrt(1 - beta2^t) / (1 - beta1^t)

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2, epsilon, weight_decay, clipping, clip: as of `clipped_adagrad`.
      correct_bias: whether c is that, else 1; None: unless `delay`.
      delay, reweight: v is of the gradients before; of h^2 in v.
      initial: v at first; None: 0, or 1e-5 with `delay`.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> adam = optimizers.clipped_adam(0.5, weight_decay=0.0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = adam.update(params, adam.init(params), params)
      >>> print(updates.round(3))
      [-0.5  0.5]
    """
    at_first = (1e-5 if delay else 0.0) if initial is None else initial
    corrects = not delay if correct_bias is None else correct_bias

    before = zeros("m", *["previous"] * delay)

    def start(parameter, p):
        return {"v": jnp.full_like(p, at_first)} | before(parameter, p)

    def step(parameter, t, g, p, kept):
        h = kept["previous"] if delay else g
        m = beta1 * kept["m"] + (1 - beta1) * g
        v = beta2 * kept["v"] + (1 - beta2) * reweight * h * h
        u = m / (jnp.sqrt(v) + epsilon) * (form_b(t, beta1, beta2) if corrects else 1)
        return u, {"m": m, "v": v} | ({"previous": g} if delay else {})

    steps = per_parameter(start, step, scanned=scanned)
    direction = optax.chain(_clipping(clipping, clip, scanned), steps)
    return scheduled(direction, rate, weight_decay, decayed, after=True)
