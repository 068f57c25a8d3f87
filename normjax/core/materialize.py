"""What XLA shall write down instead of computing it again wherever it is read."""

import jax


def materialized(x: jax.Array) -> jax.Array:
    """x, which a TPU computes once: x itself.

    XLA there repeats a norm or an activation in every product that reads it, which may
    take longer than to write it once and read it again.

    Args:
      x: [...].
    """
    kept = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(x, tpu=kept, default=lambda x: x)
