"""What XLA shall write down instead of computing it again wherever it is read."""

import jax


def materialized(x: jax.Array) -> jax.Array:
    """x, which a TPU computes once: x itself.

    XLA there would rather repeat a norm or an activation in each product that reads it
    than write it, and both take longer than that.

    Args:
      x: [...].
    """
    kept = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(x, tpu=kept, default=lambda x: x)
