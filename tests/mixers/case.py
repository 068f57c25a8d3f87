"""A row of rows.py, built: module, parameters, data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers
from normjax.mixers import MIXERS
from tests.mixers.rows import ROWS


@functools.cache
def case_of(number):
    """That of the row of this number; what is compiled of it is compiled once."""
    return Case(ROWS[number])


class Case:
    """A row with its module, random parameters and data, all float64 NumPy.

    `compiled` is `apply` under jit, for all tests of the row, and
    `value_and_gradients` (params, x, mask) -> y, (dparams, dx) of sum(y * dy) over the
    tokens.
    """

    def __init__(self, row):
        self.row = row
        self.rng = np.random.default_rng(7)
        self.tags = MIXERS[row.name].tags
        self.mixer = self.build()
        self.x = self.rng.normal(0.3, 1.0, row.shape)
        self.dy = self.rng.normal(size=row.shape)
        # One example whole, one cut short, one almost empty, in row-major order.
        positions = int(np.prod(row.shape[1:-1]))
        lengths = np.array([positions, (2 * positions) // 3, 1])[: row.shape[0]]
        mask = np.arange(positions) < lengths[:, None]
        self.mask = mask.reshape(row.shape[:-1])
        with jax.enable_x64(True):
            shapes = jax.eval_shape(
                self.mixer.init, jax.random.key(0), jnp.zeros(row.shape)
            )
        self.compiled = jax.jit(self.apply)
        self.value_and_gradients = jax.jit(self._value_and_gradients)
        self.params = jax.tree_util.tree_map_with_path(
            self._draw, shapes.get("params", {})
        )

    def build(self, **arguments):
        return mixers.build(self.row.name, **{**self.row.kwargs, **arguments})()

    def masks(self):
        return [None, self.mask] if "mask" in self.tags else [None]

    def _draw(self, path, leaf):
        if path[-1].key in self.row.ranges:
            return self.rng.uniform(*self.row.ranges[path[-1].key], leaf.shape)
        return self.rng.normal(0.0, 0.5, leaf.shape)

    def cast(self, dtype):
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), self.params)

    def apply(self, params, x, mask=None):
        return self.mixer.apply({"params": params}, x, mask=mask, train=False)

    def _value_and_gradients(self, params, x, mask):
        def loss(params, x):
            y = self.apply(params, x, mask)
            seen = y * self.dy
            return jnp.sum(seen if mask is None else _where(mask, seen)), y

        gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return y, gradients

    def oracle(self, x, params=None, mask=None):
        params = self.params if params is None else params
        kwargs = self.row.kwargs
        if self.row.held is not None:
            held = self.row.held(self.x, self.params, mask, kwargs)
            kwargs = {**kwargs, "held": held}
        return self.row.oracle(x, params, mask, kwargs)


def _where(mask, y):
    return jnp.where(mask[..., None], y, 0)


def valid(y, mask):
    """The outputs that count: those of the positions that are tokens."""
    return np.asarray(y) if mask is None else np.asarray(y)[mask]
