"""Which dtype a module computes its result in."""

import jax
from flax.linen import dtypes
from flax.typing import Dtype


def result_dtype(*arrays: jax.Array | None, dtype: Dtype | None = None) -> Dtype:
    """`dtype`, or where it is None the promoted type of the input and parameters.

    As in `flax.linen`: bfloat16 input with float32 parameters gives float32.
    """
    return dtypes.canonicalize_dtype(*arrays, dtype=dtype)
