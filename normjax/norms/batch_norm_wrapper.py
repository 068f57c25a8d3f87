"""What norms with a BatchNorm inside share: its attributes and how it is built."""

import jax

from normjax.core.arguments import field_names
from normjax.core.collections import PARAMS
from normjax.core.dtypes import result_dtype
from normjax.core.moments import at_least_float32
from normjax.norms.batch_norm import BatchNorm, BatchStatistics


class BatchNormWrapper(BatchStatistics):
    """Base of norms that call a BatchNorm, named `batch_norm`, on the way.

    Attributes: those of BatchNorm, to which they are passed; `dtype` is of the result.
    """

    def batch_norm(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        train: bool | None,
        kind: type[BatchNorm] = BatchNorm,
    ) -> jax.Array:
        """The BatchNorm of x, in at least float32; to be called once."""
        arguments = {name: getattr(self, name) for name in field_names(BatchNorm)}
        arguments["dtype"] = at_least_float32(x).dtype
        return kind(**arguments, name="batch_norm")(
            x, mask=mask, train=self.is_training(train)
        )

    def finish(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """`y` in the dtype of the result for the input `x`."""
        params = jax.tree.leaves(self.variables.get(PARAMS, {}))
        return y.astype(result_dtype(x, *params, dtype=self.dtype))
