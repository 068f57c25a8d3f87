"""Broadcasting a table over a batch with a gradient that is fast on CPU as well."""

import jax
import jax.numpy as jnp


def repeat_over_batch(table: jax.Array, batch: int) -> jax.Array:
    """The same table for every example: [...] -> [batch, ...].

    Written as a product with ones. The forward pass is a plain broadcast, as XLA sees
    through it; the gradient is a matrix product where a sum over the leading axis would
    take XLA's CPU backend 20 times as long (measured for 16 maps of 14 x 14 x 192).
    """
    ones = jnp.ones(batch, table.dtype)
    return jnp.einsum("b,...->b...", ones, table, precision="highest")
