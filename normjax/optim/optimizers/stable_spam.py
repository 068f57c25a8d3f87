"""Stable-SPAM."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from normjax.optim.base import OPTIMIZERS
from normjax.optim.per_parameter import Step, per_parameter, scheduled, zeros

SCALARS = ("largest", "norm", "norm_square")


MOMENTS = zeros("m", "v")


def _tamed(gamma1: float, gamma2: float, gamma3: float, epsilon: float) -> Callable:
    """Gradients without spikes, of the running norm, and the running values."""

    def tame(g, n, q, kept):
        most = jnp.max(jnp.abs(g))
        largest = gamma3 * kept["largest"] + (1 - gamma3) * most
        limit = largest / (1 - gamma3**n)
        shrunk = g * limit / jnp.where(most > 0, most, 1)
        g = jnp.where(jnp.abs(g) > limit, shrunk, g)

        size, a = jnp.sqrt(jnp.sum(g * g)), gamma1 * q
        norm = a * kept["norm"] + (1 - a) * size
        square = gamma2 * kept["norm_square"] + (1 - gamma2) * size * size
        to = norm / (1 - a**n) / (jnp.sqrt(square / (1 - gamma2**n)) + epsilon)
        g = jnp.where(size > 0, g / jnp.where(size > 0, size, 1) * to, g)
        return g, dict(zip(SCALARS, (largest, norm, square), strict=True))

    return tame


def _adam(beta1: float, beta2: float, epsilon: float, late: bool) -> Callable:
    """Adam that starts anew where a reset is due; late: behind that step."""

    def adam(g, k, q, due, kept):
        b1, before, after = beta1 * q, ~due | late, ~due | (not late)
        m = b1 * jnp.where(before, kept["m"], 0) + (1 - b1) * g
        v = beta2 * jnp.where(before, kept["v"], 0) + (1 - beta2) * g * g
        u = m / (1 - b1**k) / (jnp.sqrt(v / (1 - beta2**k)) + epsilon)
        m, v = (jnp.where(after, x, 0) for x in (m, v))
        return u, {"m": m, "v": v, "steps": k}

    return adam


def _start(parameter, p):
    kept = dict.fromkeys(SCALARS, jnp.zeros([], p.dtype))
    return {**kept, **MOMENTS(parameter, p), "steps": jnp.zeros([], jnp.int32)}


def _step(
    tame: Callable, adam: Callable, anneal: tuple, interval: int, one_counter: bool
) -> Step:
    def step(parameter, t, g, p, kept):
        q, (steps, low) = 1.0, anneal
        if steps:
            share = t.astype(p.dtype) / (steps + 1)
            q = low + (1 - low) * (1 + jnp.cos(math.pi * share)) / 2
        due = t % interval == 0 if interval else jnp.zeros([], bool)
        counted = kept["steps"] + 1
        g, now = tame(g, counted if one_counter else t, q, kept)
        u, moments = adam(g, jnp.where(due, 1, counted), q, due, kept)
        return u, {**now, **moments}

    return step


@OPTIMIZERS.register("stable_spam")
def stable_spam(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.05,
    gamma1: float | None = 0.7,
    gamma2: float = 0.9,
    gamma3: float = 0.999,
    anneal_steps: int = 0,
    anneal_to: float = 0.5,
    interval: int = 1000,
    as_published: bool = False,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam of tamed gradients that starts anew at times (Huang et al., 2025).

    Per array, with the largest entry M = max |g| and running values a', corrected as
    those of Adam are:

        a <- gamma3 a + (1 - gamma3) M        g <- g a' / M  where |g| > a'
        n <- c n + (1 - c) |g|    s <- gamma2 s + (1 - gamma2) |g|^2    c = gamma1 q
        g <- g / |g| n' / (sqrt(s') + epsilon)
        w <- w (1 - rate weight_decay) - rate Adam(g; beta1 q, beta2, epsilon)

    q = 1, or falls by a cosine from 1 to `anneal_to` in `anneal_steps`. Every
    `interval` updates the moments of Adam are 0 and it counts anew.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in the moments of Adam.
      epsilon: added to roots.  weight_decay: times the rate.
      gamma1: weight of the old value in n; None: beta1.  gamma2: in s.  gamma3: in a.
      anneal_steps: of q; 0: q = 1.  anneal_to: where q ends.
      interval: updates from one reset to the next; 0: none.
      as_published: at a reset the old moments are used once more, and statistics
        count with Adam, from 1, as in the published code.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> spam = optimizers.stable_spam(0.5, weight_decay=0.0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = spam.update(params, spam.init(params), params)
      >>> print(updates)
      [-0.5  0.5]
    """
    tame = _tamed(beta1 if gamma1 is None else gamma1, gamma2, gamma3, epsilon)
    adam = _adam(beta1, beta2, epsilon, as_published)
    step = _step(tame, adam, (anneal_steps, anneal_to), interval, as_published)
    direction = per_parameter(_start, step, scanned=scanned)
    return scheduled(direction, rate, weight_decay, decayed)
