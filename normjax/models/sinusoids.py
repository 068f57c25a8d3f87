"""Tables of positions that are added to the tokens of an image."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import CONSTANTS
from normjax.core.dense import trunc_normal

Shape = tuple[int, ...]


def sinusoids(length: int, features: int) -> np.ndarray:
    """[length, features]: sines and cosines in turn (Vaswani et al., 2017).

    Column j of row p is the sine, or for odd j the cosine, of
    p / 10000^(2 floor(j / 2) / features).
    """
    columns = np.arange(features)
    angles = np.arange(length)[:, None] / 10000 ** (2 * (columns // 2) / features)
    return np.where(columns % 2, np.cos(angles), np.sin(angles))


def _of(shape: Shape) -> jax.Array:
    """`sinusoids` of the positions of [..., C], in rows."""
    table = sinusoids(int(np.prod(shape[:-1])), shape[-1])
    return jnp.asarray(table.reshape(shape), jnp.float32)


def _learned(module: nn.Module, shape: Shape) -> jax.Array:
    return module.param("pos_embed", trunc_normal, (1, *shape))[0]


def _sine(module: nn.Module, shape: Shape) -> jax.Array:
    del module
    return _of(shape)


def _stored_sine(module: nn.Module, shape: Shape) -> jax.Array:
    return module.variable(CONSTANTS, "pos_embed", lambda: _of((1, *shape))).value[0]


POSITIONS: dict[str, Callable[[Any, Shape], jax.Array]] = {
    "learned": _learned,
    "sine": _sine,
    "stored_sine": _stored_sine,
}
"""Functions of (the model, [..., C]) to such a table, `positions=` of models.

    learned       a table of parameters, `pos_embed`
    sine          `sinusoids` of the tokens, row by row
    stored_sine   the same as a table of the collection "constants", which is saved
                  and read with the weights but not trained

What is learned or stored fixes the size of the images.
"""
