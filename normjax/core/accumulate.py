"""Products whose sums are promised in float32, held to it on every accelerator.

A TPU multiplies float32 matrices in one pass of bfloat16 and a GPU in TF32, unless the
product itself says otherwise. Layers (`core.dense`, convolutions) and the two products
of softmax attention leave that to `jax.default_matmul_precision`, as all of JAX does.
What sums over positions, examples or a kernel for moments, states, normalizers and
norms of weights says it here.
"""

from typing import Any

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST
"""The precision of a product of float32 that is computed in float32."""


def precision_of(*operands: jax.Array) -> jax.lax.Precision:
    """Of a product of `operands`, or of what was made of them in float32.

    EXACT, but where one is bfloat16, whose own rounding is as large as that of the fast
    product: there sums alone are in float32, at the full speed of the matrix units.
    """
    narrow = any(operand.dtype == jnp.bfloat16 for operand in operands)
    return jax.lax.Precision.DEFAULT if narrow else EXACT


def einsum(
    subscripts: str, *operands: jax.Array, precision: jax.lax.Precision | None = None
) -> jax.Array:
    """`jnp.einsum` with sums in at least float32; the result is that wide, too.

    Args:
      precision: of the products; None: `precision_of` the operands.
    """
    dtype = jnp.result_type(*operands, jnp.float32)
    arguments: dict[str, Any] = {"preferred_element_type": dtype}
    if precision is None:
        precision = precision_of(*operands)
    return jnp.einsum(subscripts, *operands, precision=precision, **arguments)
