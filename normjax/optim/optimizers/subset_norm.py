"""Subset-Norm and Subspace-Momentum, one optimizer."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim.base import OPTIMIZERS
from normjax.optim.matrices import (
    NO_MATRICES,
    Projection,
    check_choice,
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

MOMENTA = ("ema", "none")
SECOND_MOMENTS = ("ema", "sum", "none")


def subset_size_of(entries: int, wanted: int) -> int:
    """The largest divisor of `entries` that is at most the wanted size.

    Args:
      entries: of the array.
      wanted: a size, or -k for the root of `entries` divided by k.
    """
    if wanted < 0:
        wanted = int(math.sqrt(entries) / -wanted)
    return next(
        d for d in range(max(1, min(wanted, entries)), 0, -1) if entries % d == 0
    )


def subset_sums(squares: jax.Array, size: int) -> jax.Array:
    """Sums over subsets of the entries of a matrix [rows, columns].

    Args:
      squares: [rows, columns].
      size: of runs of entries, see `subset_size_of`: [runs, 1]; 0: the subsets are the
        rows where there are as many rows as columns, else the columns.
    """
    if size == 0:
        over = 1 if squares.shape[0] >= squares.shape[1] else 0
        return jnp.sum(squares, axis=over, keepdims=True)
    runs = squares.reshape(-1, subset_size_of(squares.size, size))
    return jnp.sum(runs, axis=1, keepdims=True)


def _spread(sums: jax.Array, like: jax.Array, size: int) -> jax.Array:
    if size == 0:
        return jnp.broadcast_to(sums, like.shape)
    each = like.size // len(sums)
    return jnp.broadcast_to(sums, (len(sums), each)).reshape(like.shape)


class _Subsets(NamedTuple):
    """The direction of both optimizers, see `subset_norm` and `subspace_momentum`."""

    beta1: float
    beta2: float
    epsilon: float
    correct_bias: bool
    momentum: str
    second_moment: str
    subset_size: int | None
    exclude: str
    axis: int
    projection: Projection | None = None
    reset_late: bool = False

    def start(self, parameter: Parameter, p: jax.Array) -> Kept:
        hidden, kept = is_matrix(parameter, p, self.exclude), {}
        if hidden and self.projection:
            kept = self.projection.start(rows_of(p, self.axis))
        elif self.momentum != "none":
            kept["m"] = jnp.zeros_like(p)
        if self.second_moment != "none":
            size = self.subset_size if hidden else None
            kept["v"] = jnp.zeros_like(p if size is None else self._squares(p, size))
        return kept

    def step(self, parameter, t, g, p, kept):
        now, hidden = {}, is_matrix(parameter, p, self.exclude)
        u = g
        if hidden and self.projection:
            u, now = self._in_subspace(self.projection, parameter, t, g, kept)
        elif self.momentum != "none":
            u = now["m"] = self.beta1 * kept["m"] + (1 - self.beta1) * g
        if self.second_moment != "none":
            size, b = self.subset_size if hidden else None, self.beta2
            q = g * g if size is None else self._squares(g, size)
            ema = self.second_moment == "ema"
            v = now["v"] = b * kept["v"] + (1 - b) * q if ema else kept["v"] + q
            root = jnp.sqrt(v) + self.epsilon
            u = u / (root if size is None else self._spread(root, g, size))
        if self.correct_bias:
            first = 0.0 if self.momentum == "none" else self.beta1
            second = self.beta2 if self.second_moment == "ema" else None
            u = u * form_b(t, first, second)
        return u, now

    def _in_subspace(self, projection: Projection, parameter, t, g, kept):
        rows = rows_of(g, self.axis)
        due = (t == 1) | (t % projection.interval == 0)
        basis = projection.refreshed(parameter, t, due, rows, kept["basis"])
        reset, low = due & (t > 1), projection.low(rows, basis)
        old = kept["m"] if self.reset_late else jnp.where(reset, 0, kept["m"])
        m = self.beta1 * old + (1 - self.beta1) * low
        u = projection.back(m, basis, rows)
        u = u + rows - projection.back(low, basis, rows)
        m = jnp.where(reset, 0, m) if self.reset_late else m
        return from_rows(u, g, self.axis), {"m": m, "basis": basis}

    def _squares(self, g: jax.Array, size: int) -> jax.Array:
        rows = rows_of(g, self.axis)
        return subset_sums(rows * rows, size)

    def _spread(self, sums: jax.Array, like: jax.Array, size: int) -> jax.Array:
        rows = _spread(sums, rows_of(like, self.axis), size)
        return from_rows(rows, like, self.axis)

    def transformation(self, scanned: tuple[str, ...]) -> optax.GradientTransformation:
        check_choice("momentum", self.momentum, MOMENTA)
        check_choice("second_moment", self.second_moment, SECOND_MOMENTS)
        return per_parameter(self.start, self.step, scanned=scanned)


@OPTIMIZERS.register("subset_norm")
def subset_norm(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.05,
    correct_bias: bool = True,
    momentum: str = "ema",
    second_moment: str = "ema",
    subset_size: int = 0,
    exclude: str = NO_MATRICES,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adam with one second moment for a subset of the entries (Nguyen & Nguyen, 2025).

        m <- beta1 m + (1 - beta1) g    v <- beta2 v + (1 - beta2) sum(g^2) of a subset
        w <- w - rate c m / (sqrt(v) + epsilon)        w <- w (1 - rate weight_decay)

    with c = sqrt(1 - beta2^t) / (1 - beta1^t). Subsets are those of matrices; what is
    none has a second moment of every entry. They are sums, not means: rates are about
    ten times those of Adam.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in m and v.
      epsilon: added to the root.  weight_decay: times the rate.
      correct_bias: whether c is that; else 1.
      momentum: "ema", or "none" for the gradient alone.
      second_moment: "ema"; "sum", v <- v + sum(g^2), as AdaGrad; or "none".
      subset_size: entries of a subset, runs of [out, in]; -k: the root of all of them
        divided by k; 0: an output unit, or an input where there are fewer outputs.
      exclude: regular expression, searched in the path of a parameter of two or more
        dims, of those that are no matrices.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> subset_norm = optimizers.subset_norm(0.5, weight_decay=0.0, subset_size=2)
      >>> params = {"fc": {"kernel": jnp.array([[3.0], [4.0]])}}
      >>> updates, _ = subset_norm.update(params, subset_norm.init(params), params)
      >>> print(updates["fc"]["kernel"].round(2).ravel())  # -0.5 g / |g|
      [-0.3 -0.4]
    """
    adam, rest = (beta1, beta2, epsilon, correct_bias), (subset_size, exclude, axis)
    direction = _Subsets(*adam, momentum, second_moment, *rest).transformation(scanned)
    return scheduled(direction, rate, weight_decay, decayed, after=True)


@OPTIMIZERS.register("subspace_momentum")
def subspace_momentum(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.05,
    correct_bias: bool = True,
    second_moment: str = "ema",
    subsets: bool = True,
    subset_size: int = 0,
    projection: str = "svd",
    rank: int = 128,
    interval: int = 200,
    reset_late: bool = False,
    exclude: str = NO_MATRICES,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Momentum in a subspace, the gradient outside of it (Nguyen & Nguyen, 2025).

        m <- beta1 m + (1 - beta1) Q g        u = Q' m + (g - Q' Q g)
        w <- w - rate c u / (sqrt(v) + epsilon)        w <- w (1 - rate weight_decay)

    with v, c and what is no matrix as in `subset_norm`. Q is found anew from the
    gradient every `interval` updates, where m starts from 0.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      beta1, beta2: weights of the old values in m and v.
      epsilon, weight_decay, correct_bias, second_moment, subset_size: of `subset_norm`.
      subsets: whether v of a matrix is of subsets.  rank: of the subspace.
      projection: "svd", "topk" or "uniform".  interval: updates between refreshes.
      reset_late: m is used once more before it is 0, as in the published code.
      exclude: regular expression of the paths of those that are no matrices.
      axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Raises:
      UserError: an unknown projection, or a rank or interval below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> arguments = {"rank": 1, "second_moment": "none", "weight_decay": 0.0}
      >>> sgd = optimizers.subspace_momentum(1.0, correct_bias=False, **arguments)
      >>> params = {"fc": {"kernel": jnp.diag(jnp.array([2.0, 1.0]))}}
      >>> updates, _ = sgd.update(params, sgd.init(params), params)
      >>> print(updates["fc"]["kernel"].round(2).diagonal())  # 1 - beta1 of the first
      [-0.2 -1. ]
    """
    adam, found = (beta1, beta2, epsilon, correct_bias), (projection, rank, interval)
    rest = (subset_size if subsets else None, exclude, axis, projection_of(*found))
    subset = _Subsets(*adam, "ema", second_moment, *rest, reset_late)
    direction = subset.transformation(scanned)
    return scheduled(direction, rate, weight_decay, decayed, after=True)
