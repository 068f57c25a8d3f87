"""Adam of projected gradients (GaLore), of weights or of their directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim.base import OPTIMIZERS
from normjax.optim.matrices import (
    NO_MATRICES,
    Projection,
    form_b,
    is_matrix,
    projection_of,
)
from normjax.optim.per_parameter import (
    Kept,
    Parameter,
    from_rows,
    per_parameter,
    rows_of,
    scheduled,
)


class _LowRank(NamedTuple):
    """Adam in the subspaces of matrices, see `galore`."""

    beta1: float
    beta2: float
    epsilon: float
    correct_bias: bool
    scale: float
    projection: Projection
    exclude: str
    axis: int

    def start(self, parameter: Parameter, p: jax.Array) -> Kept:
        if not is_matrix(parameter, p, self.exclude):
            return dict.fromkeys("mv", jnp.zeros_like(p))
        kept = self.projection.start(rows_of(p, self.axis))
        return {**kept, "v": jnp.zeros_like(kept["m"])}

    def step(self, parameter, t, g, p, kept):
        if not is_matrix(parameter, p, self.exclude):
            return self.adam(t, g, kept)
        due = (t - 1) % self.projection.interval == 0
        rows = rows_of(g, self.axis)
        basis = self.projection.refreshed(parameter, t, due, rows, kept["basis"])
        u, now = self.adam(t, self.projection.low(rows, basis), kept)
        u = self.scale * self.projection.back(u, basis, rows)
        return from_rows(u, g, self.axis), {**now, "basis": basis}

    def adam(self, t, g, kept, prefix=""):
        m, v = (kept[f"{prefix}{name}"] for name in "mv")
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * g * g
        u = m / (jnp.sqrt(v) + self.epsilon)
        u = u * form_b(t, self.beta1, self.beta2) if self.correct_bias else u
        return u, {f"{prefix}m": m, f"{prefix}v": v}


COUNTED = optax.scale_by_schedule(lambda count: 1.0)
"""Behind steps that know their rate: `updates_made` reads the state of a schedule."""


class _Directions(NamedTuple):
    """Direction and magnitude of each unit, see `gradnormlorp`."""

    low_rank: _LowRank
    rate: optax.ScalarOrSchedule
    weight_decay: float

    def start(self, parameter: Parameter, p: jax.Array) -> Kept:
        magnitude = jnp.zeros([len(self._view(parameter, p)), 1], p.dtype)
        kept = {**self.low_rank.start(parameter, p), "direction": p}
        return kept | dict.fromkeys(("magnitude_m", "magnitude_v"), magnitude)

    def step(self, parameter, t, g, p, kept):
        lr = self.rate(t - 1) if callable(self.rate) else self.rate
        old, rows = (self._view(parameter, x) for x in (kept["direction"], g))
        norm = jnp.linalg.norm(old, axis=1, keepdims=True)
        slope = jnp.sum(rows * old, 1, keepdims=True) / jnp.where(norm > 0, norm, 1)
        u, now = self.low_rank.step(parameter, t, g, p, kept)
        by, magnitude = self.low_rank.adam(t, slope, kept, "magnitude_")
        new, size = old - lr * self._view(parameter, u), norm - lr * by
        if parameter.decays:
            new, size = (x * (1 - lr * self.weight_decay) for x in (new, size))
        length = jnp.linalg.norm(new, axis=1, keepdims=True)
        weights = size * new / jnp.where(length > 0, length, 1)
        hidden, axis = self._hidden(parameter, p), self.low_rank.axis
        weights, new = (
            from_rows(x, p, axis) if hidden else x.reshape(p.shape)
            for x in (weights, new)
        )
        return weights - p, {**now, **magnitude, "direction": new}

    def _hidden(self, parameter, x):
        return is_matrix(parameter, x, self.low_rank.exclude)

    def _view(self, parameter, x):
        hidden = self._hidden(parameter, x)
        return rows_of(x, self.low_rank.axis) if hidden else x.reshape(1, -1)


@OPTIMIZERS.register("galore")
def galore(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.05,
    correct_bias: bool = True,
    rank: int = 128,
    interval: int = 200,
    scale: float = 0.25,
    exclude: str = NO_MATRICES,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam in the span of singular vectors of gradients (Zhao et al., 2024).

        m <- beta1 m + (1 - beta1) Q g        v <- beta2 v + (1 - beta2) (Q g)^2
        w <- w - rate c scale Q' (m / (sqrt(v) + epsilon))
        w <- w (1 - rate weight_decay)

    with c = sqrt(1 - beta2^t) / (1 - beta1^t). Q is found anew at updates 1,
    `interval` + 1, ...; m and v go on. It projects the shorter side of a matrix, and
    is what GradNormLoRP (Huang et al., 2025) pre-trains with. What is no matrix has
    Adam's update.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in m and v.
      epsilon: added to the root.  weight_decay: times the rate.
      correct_bias: whether c is that; else 1.
      rank: dims of the subspace.  interval: updates from one to the next.
      scale: factor of the step of matrices.
      exclude: regular expression, searched in the path of a parameter of two or more
        dims, of those that are no matrices.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Raises:
      UserError: a rank or interval below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> galore = optimizers.galore(1.0, weight_decay=0.0, rank=1, scale=0.5)
      >>> params = {"fc": {"kernel": jnp.diag(jnp.array([2.0, 1.0]))}}
      >>> updates, _ = galore.update(params, galore.init(params), params)
      >>> print(updates["fc"]["kernel"].round(2).diagonal())
      [-0.5  0. ]
    """
    projection = projection_of("svd", rank, interval)
    low_rank = _LowRank(
        beta1, beta2, epsilon, correct_bias, scale, projection, exclude, axis
    )
    direction = per_parameter(low_rank.start, low_rank.step, scanned=scanned)
    return scheduled(direction, rate, weight_decay, decayed, after=True)


@OPTIMIZERS.register("gradnormlorp")
def gradnormlorp(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.05,
    correct_bias: bool = True,
    rank: int = 128,
    interval: int = 500,
    scale: float = 4.0,
    exclude: str = NO_MATRICES,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam of direction and magnitude of each unit, projected (Huang et al., 2025).

    A unit's weights are w = s V / |V|; V, which starts as w, is kept. With the moments
    of Adam of g in the subspace of `galore`, u_V, and of <g, V> / |V|, u_s:

        s = |V| - rate c u_s        V <- V - rate c scale Q' u_V
        s <- s (1 - rate weight_decay)        V <- V (1 - rate weight_decay)

    What is no matrix is one unit, without projection. s starts anew from |V|.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in the moments.
      epsilon: added to roots.  weight_decay: times the rate.
      correct_bias: whether c corrects the moments, see `galore`; else 1.
      rank: dims of the subspace.  interval: updates from one to the next.
      scale: factor of the step of directions of matrices.
      exclude: regular expression, searched in the path of a parameter of two or more
        dims, of those that are no matrices.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Raises:
      UserError: a rank or interval below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> lorp = optimizers.gradnormlorp(0.5, weight_decay=0.0)
      >>> params = {"scale": jnp.array([3.0, 4.0])}  # one unit: s = 5
      >>> updates, _ = lorp.update(params, lorp.init(params), params)
      >>> print((params["scale"] + updates["scale"]).round(3))  # s = 4.5
      [2.616 3.662]
    """
    projection = projection_of("svd", rank, interval)
    low_rank = _LowRank(
        beta1, beta2, epsilon, correct_bias, scale, projection, exclude, axis
    )
    units = _Directions(low_rank, rate, weight_decay)
    steps = per_parameter(units.start, units.step, decayed=decayed, scanned=scanned)
    return optax.chain(steps, COUNTED)
