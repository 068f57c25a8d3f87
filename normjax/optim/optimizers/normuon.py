"""NorMuon."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim.base import OPTIMIZERS
from normjax.optim.matrices import (
    NO_MATRICES,
    check_choice,
    is_matrix,
    orthogonalized,
)
from normjax.optim.per_parameter import (
    Start,
    Step,
    from_rows,
    per_parameter,
    rows_of,
)

SCALINGS = ("norm", "rms")
AUXILIARY_EPSILON = 1e-10


def _size(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)


class _View(NamedTuple):
    """Kernels as [out, the rest], or those of four dims as [out, in, kh, kw]."""

    axis: int
    published: bool

    def of(self, x: jax.Array) -> jax.Array:
        if not (self.published and x.ndim == 4):
            return rows_of(x, self.axis)
        return x if self.axis == 0 else jnp.transpose(x, (3, 2, 0, 1))

    def back(self, x: jax.Array, like: jax.Array) -> jax.Array:
        if not (self.published and x.ndim == 4):
            return from_rows(x, like, self.axis)
        return x if self.axis == 0 else jnp.transpose(x, (2, 3, 1, 0))


def _normalized(
    o: jax.Array, v: jax.Array, decay: float, scaling: str
) -> tuple[jax.Array, jax.Array]:
    """(o by the root of the running mean square of its rows, that mean)."""
    before, (rows, columns) = _size(o), o.shape[-2:]
    v = decay * v + (1 - decay) * jnp.mean(o * o, axis=-1, keepdims=True)
    if scaling == "norm":
        o = o / (jnp.sqrt(v) + 1e-10)
        return o * before / (_size(o) + 1e-10) * max(1, rows / columns) ** 0.5, v
    o = o / (jnp.sqrt(v) + 1e-8)
    size = _size(o)
    o = 0.2 * (rows * columns) ** 0.5 * o / jnp.where(size > 0, size, 1)
    return o, v


def _adam(beta1: float, beta2: float) -> Callable:
    def adam(t, g, p, kept):
        m = beta1 * kept["m"] + (1 - beta1) * g
        v = beta2 * kept["v"] + (1 - beta2) * g * g
        root = jnp.sqrt(v / (1 - beta2**t)) + AUXILIARY_EPSILON
        return m / (1 - beta1**t) / root, {"m": m, "v": v}

    return adam


def _matrix(
    view: _View, moved: tuple[float, float, bool], scaling: str, orthogonal: Callable
) -> Callable:
    momentum, second_momentum, nesterov = moved

    def matrix(t, g, p, kept):
        m = momentum * kept["m"] + (1 - momentum) * g
        u = view.of(momentum * m + (1 - momentum) * g if nesterov else m)
        o = orthogonal(u.reshape(len(u), -1)).reshape(u.shape)
        o, v = _normalized(o, kept["v"], second_momentum, scaling)
        return view.back(o, p), {"m": m, "v": v}

    return matrix


def _steps(
    view: _View,
    matrix: Callable,
    adam: Callable,
    exclude: str,
    weight_decay: float,
    auxiliary_rate: float,
) -> tuple[Start, Step]:
    """By the rule which parameters are matrices of hidden layers."""

    def start(parameter, p):
        hidden = is_matrix(parameter, p, exclude)
        v = jnp.zeros_like(view.of(p)[..., :1] if hidden else p)
        return {"m": jnp.zeros_like(p), "v": v}

    def step(parameter, t, g, p, kept):
        hidden = is_matrix(parameter, p, exclude)
        u, kept = (matrix if hidden else adam)(t, g, p, kept)
        u = u + weight_decay * p if parameter.decays else u
        return u if hidden else auxiliary_rate * u, kept

    return start, step


@OPTIMIZERS.register("normuon")
def normuon(
    rate: optax.ScalarOrSchedule,
    decayed: Any = None,
    /,
    *,
    momentum: float = 0.95,
    second_momentum: float = 0.95,
    weight_decay: float = 0.05,
    nesterov: bool = True,
    scaling: str = "norm",
    iterations: int = 5,
    dtype: str = "",
    conv_as_published: bool = False,
    auxiliary_rate: float = 0.015,
    beta1: float = 0.9,
    beta2: float = 0.999,
    exclude: str = NO_MATRICES,
    axis: int = -1,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Orthogonalised momentum, normalised by neuron (Li et al., 2025).

    Of a matrix with a row for each output unit:

        m <- beta m + (1 - beta) g        u = beta m + (1 - beta) g
        O = orthogonalized(u)             v <- b v + (1 - b) mean(O^2) of a row
        N = O / (sqrt(v) + 1e-10)
        w <- w - rate N |O| / |N| sqrt(max(1, rows / columns))

    Embeddings, heads, vectors and scalars have Adam's update at a rate of their own.

    Args:
      rate: the learning rate, or a schedule.
      decayed: the tree of bools by parameter that says which decay, or a function from
        the parameters to it; None: all.
      momentum: weight of the old value in m.  second_momentum: in v.
      weight_decay: times the rate.  nesterov: without, u = m.
      scaling: "norm" as in the published code; "rms", 0.2 sqrt(rows columns) O / |O|.
      iterations: of the orthogonalisation.  dtype: of it, published in "bfloat16".
      conv_as_published: statistics of convolutions are those of their windows.
      auxiliary_rate, beta1, beta2: of Adam; rate is a factor.
      exclude: paths of further ones that Adam updates.  axis: of output units.
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import optimizers
      >>> normuon = optimizers.normuon(0.02, weight_decay=0.0)
      >>> params = {"fc": {"kernel": jnp.eye(2)}, "norm": {"scale": jnp.ones(2)}}
      >>> updates, _ = normuon.update(params, normuon.init(params), params)
      >>> print(updates["norm"]["scale"])  # Adam at 0.015 of the rate
      [-0.0003 -0.0003]
    """
    check_choice("scaling", scaling, SCALINGS)
    view, moved = _View(axis, conv_as_published), (momentum, second_momentum, nesterov)
    orthogonal = functools.partial(orthogonalized, steps=iterations, dtype=dtype)
    matrix, adam = _matrix(view, moved, scaling, orthogonal), _adam(beta1, beta2)
    steps = _steps(view, matrix, adam, exclude, weight_decay, auxiliary_rate)
    direction = per_parameter(*steps, decayed=decayed, scanned=scanned)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))
