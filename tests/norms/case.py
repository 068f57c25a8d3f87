"""A row of rows.py, built: module, variables, data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from normjax import norms
from normjax.core.collections import OVERWRITE
from tests.norms.rows import ROWS

STATS = "batch_stats"


@functools.cache
def case_of(number):
    """That of the row of this number; what is compiled of it is compiled once."""
    return Case(ROWS[number])


class Case:
    """A row with its module, random variables and data, all float64 NumPy.

    `compiled` and `gradients` are jitted, for all tests of the row: `apply`, and
    (variables, x, dy, mask) -> (y, new state), gradients of sum(y * dy) by parameters,
    what is overwritten with its gradient, and x.
    """

    def __init__(self, row):
        self.row = row
        self.rng = np.random.default_rng(7)
        self.norm = norms.build(row.name, **row.kwargs)()
        self.x = self.rng.normal(0.5, 2.0, row.shape)
        self.dy = self.rng.normal(size=row.shape)
        self.mask = np.arange(row.shape[1]) < np.array([7, 3, 0, 5])[:, None]
        if len(row.shape) > 3:
            self.mask = self.mask[:, :, None] & np.ones(row.shape[1:-1], bool)
        with jax.enable_x64(True):
            shapes = jax.eval_shape(
                functools.partial(self.norm.init, train=True),
                jax.random.key(0),
                jnp.zeros(row.shape),
            )
        self.params = jax.tree.map(self._draw, shapes.get("params", {}))
        self.stats = jax.tree_util.tree_map_with_path(
            self._draw_stat, shapes.get(STATS, {})
        )
        self.overwrite = jax.tree.map(self._draw, shapes.get(OVERWRITE, {}))
        self.compiled = jax.jit(self.apply, static_argnames="train")
        self.gradients = jax.jit(self.with_gradients)

    def _draw(self, s):
        return self.rng.uniform(0.5, 1.5, s.shape)

    def _draw_stat(self, path, s):
        name = path[-1].key
        if name in self.row.stats:
            return np.asarray(self.row.stats[name], s.dtype)
        return self._draw(s)

    def variables(self, dtype):
        def cast(a):
            a = np.asarray(a)
            return jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype)

        tree = {"params": self.params, STATS: self.stats, OVERWRITE: self.overwrite}
        return jax.tree.map(cast, {k: v for k, v in tree.items() if v})

    def apply(self, variables, x, mask=None, train=True, norm=None):
        norm = norm or self.norm
        y, new = norm.apply(variables, x, mask=mask, train=train, mutable=[STATS])
        return y, new.get(STATS, {})

    def with_gradients(self, variables, x, dy, mask=None, norm=None):
        def loss(params, overwrite, x):
            given = {**variables, "params": params, OVERWRITE: overwrite}
            y, new = self.apply(given, x, mask, norm=norm)
            return jnp.sum(y * dy), (y, new)

        at = variables.get("params", {}), variables.get(OVERWRITE, {}), x
        gradients, value = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*at)
        return value, gradients

    def oracle(self, x, params=None, mask=None, train=True):
        params = self.params if params is None else params
        return self.row.oracle(x, params, self.stats, mask, train, self.row.kwargs)
