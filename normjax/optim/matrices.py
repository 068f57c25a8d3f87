"""Parameters that are treated as matrices, their projections and orthogonalisation."""

import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import contrib

from normjax.core.errors import UserError, one_of
from normjax.optim.per_parameter import Kept, Parameter

NO_MATRICES = (
    r"(^|/)\w*embed(ding)?(/embedding)?$|^head|token$|positional|relative_position|"
    r"positions$"
)
"""Paths of parameters of two or more dims that are no matrices of hidden layers."""

PROJECTIONS = ("svd", "topk", "uniform")


def is_matrix(parameter: Parameter, p: Any, exclude: str) -> bool:
    """Whether it has two or more dims and a path in which `exclude` is not found."""
    return p.ndim > 1 and re.search(exclude, parameter.path) is None


def orthogonalized(x: jax.Array, steps: int = 5, dtype: str = "") -> jax.Array:
    """The nearest to U V' that Newton and Schulz come, of x = U S V' (Jordan, 2024).

        X <- X / (|X| + 1e-7), then `steps` times, with A = X X':
        X <- 3.4445 X + (-4.7750 A + 2.0315 A A) X

    Args:
      x: [n, m].  steps: of the iteration.
      dtype: that it runs in, "bfloat16" in the published code; "": that of x.
    """
    muon = contrib.scale_by_muon(ns_steps=steps, beta=0.0, eps=1e-7, nesterov=False)
    given = x.astype(dtype or x.dtype)
    made: Any = muon.update(given, muon.init(given))[0]
    return made.astype(x.dtype)


def check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(one_of(what, value, allowed))


class Projection(NamedTuple):
    """Onto a subspace of a matrix [rows, columns] that is found from its gradient.

    Attributes:
      kind: "svd", the first singular vectors of the shorter side; "topk", the rows or
        columns of the longer side with the largest norms; or "uniform", random ones.
      rank: dims of the subspace, at most those of the shorter side.
      interval: updates from one subspace to the next.
    """

    kind: str
    rank: int
    interval: int

    def start(self, g: jax.Array) -> Kept:
        """A basis, to be replaced before the first use, and zeros of the projected."""
        (rows, columns), r = g.shape, self._rank(g)
        if self.kind == "svd":
            size = (columns if rows >= columns else rows, r)
            basis = jnp.zeros(size, g.dtype)
        else:
            basis = jnp.zeros([r], jnp.int32)
        low = jax.eval_shape(self.low, g, basis)
        return {"basis": basis, "m": jnp.zeros(low.shape, low.dtype)}

    def refreshed(
        self,
        parameter: Parameter,
        t: jax.Array,
        due: jax.Array,
        g: jax.Array,
        kept: Any,
    ) -> jax.Array:
        """The basis at update t: of the gradient g where it is due, else the old."""

        def found(g):
            if self.kind == "svd":
                return _singular_vectors(g, self._rank(g))
            tall = g.shape[0] >= g.shape[1]
            longer = max(g.shape)
            if self.kind == "topk":
                norms = jnp.linalg.norm(g, axis=1 if tall else 0)
                chosen = jnp.argsort(-norms, stable=True)
            else:
                key = jax.random.key(zlib.crc32(parameter.path.encode()))
                chosen = jax.random.permutation(jax.random.fold_in(key, t), longer)
            return chosen[: self._rank(g)].astype(jnp.int32)

        return jax.lax.cond(due, found, lambda g: kept, g)

    def low(self, g: jax.Array, basis: jax.Array) -> jax.Array:
        """The coordinates of g in the subspace."""
        tall = g.shape[0] >= g.shape[1]
        if self.kind == "svd":
            return g @ basis if tall else basis.T @ g
        return g[basis] if tall else g[:, basis]

    def back(self, low: jax.Array, basis: jax.Array, g: jax.Array) -> jax.Array:
        """What has these coordinates, in the shape of g."""
        tall = g.shape[0] >= g.shape[1]
        if self.kind == "svd":
            return low @ basis.T if tall else basis @ low
        zeros = jnp.zeros(g.shape, low.dtype)
        return zeros.at[basis].set(low) if tall else zeros.at[:, basis].set(low)

    def _rank(self, g: jax.Array) -> int:
        return min(self.rank, *g.shape)


def _singular_vectors(g: jax.Array, rank: int) -> jax.Array:
    """The first of the shorter side, as columns; their largest entries are positive."""
    left, _, right = jnp.linalg.svd(g, full_matrices=False)
    vectors = (right.T if g.shape[0] >= g.shape[1] else left)[:, :rank]
    largest = jnp.argmax(jnp.abs(vectors), axis=0, keepdims=True)
    return vectors * jnp.sign(jnp.take_along_axis(vectors, largest, 0))


def projection_of(kind: str, rank: int, interval: int) -> Projection:
    """The projection with these arguments.

    Raises:
      UserError: an unknown kind, or a rank or interval below 1.
    """
    check_choice("projection", kind, PROJECTIONS)
    for name, value in (("rank", rank), ("interval", interval)):
        if value < 1:
            raise UserError(f"config.optim.{name}={value} must be at least 1")
    return Projection(kind, rank, interval)


def form_b(t: jax.Array, beta1: float, beta2: float | None) -> jax.Array:
    """sqrt(1 - beta2^t) / (1 - beta1^t), the correction of both moments at once.

    Args:
      t: 1, 2, ...  beta1: of m.  beta2: of v; None: v is not corrected.
    """
    second = 1.0 if beta2 is None else jnp.sqrt(1 - beta2**t)
    return second / (1 - beta1**t)
