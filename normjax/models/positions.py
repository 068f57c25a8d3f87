"""First values of learned tables of positions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.dense import trunc_normal
from normjax.core.errors import UserError


def sine_table(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """[H, W, C]: sines and cosines of the column, then those of the row.

    Half of the channels each, [sin(p f) | cos(p f)] with f_i = 10000**(-4 i / C) (MAE;
    He et al., 2022).

    Raises:
      UserError: C is no multiple of 4.
    """
    del key
    *grid, channels = shape
    if channels % 4:
        raise UserError(f"a table of sines needs 4 n channels, not {channels}")
    frequencies = 10000.0 ** -(np.arange(channels // 4) / (channels // 4))
    rows, columns = (i[..., None] * frequencies for i in np.indices(grid))
    parts = [f(angle) for angle in (columns, rows) for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(parts, -1), dtype)


INITIAL_TABLES = {True: trunc_normal, "sine": sine_table}
"""By what a model says of its tables."""
