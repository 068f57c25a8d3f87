"""What a model holds and computes, to be compared before and after folding."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from normjax.core.collections import PARAMS
from normjax.core.operations import multiply_adds, operations


class Size(NamedTuple):
    """What a model holds and computes at evaluation.

    Attributes:
      parameters: numbers it has learned.  state: numbers in all other collections.
      multiply_adds: of its matrix products and convolutions.
      operations: additions, multiplications and the like of everything; a
        multiply-add is two.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import fusion
      >>> layer, x = nn.Dense(3, use_bias=False), jax.numpy.ones((1, 8))
      >>> fusion.size_of(layer, layer.init(jax.random.key(0), x), x)
      Size(parameters=24, state=0, multiply_adds=24, operations=48)
    """

    parameters: int
    state: int
    multiply_adds: int
    operations: int


def size_of(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Size:
    """The size of `model`. Nothing is computed or compiled.

    Args:
      model: any Flax module.  variables: of `model`.
      *args, **kwargs: what it is called with. All are arrays or
        `jax.ShapeDtypeStruct`.

    Example:
      >>> import jax
      >>> from normjax import fusion, models
      >>> model = models.build("resnet", num_classes=10, depths=(1,), widths=(8,))
      >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> size = fusion.size_of(model, variables, images)
      >>> size.parameters, size.multiply_adds
      (2466, 375376)
    """

    def apply(variables, args, kwargs):
        return model.apply(variables, *args, **kwargs)

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    return Size(
        parameters=count(variables[PARAMS]),
        state=count({k: v for k, v in variables.items() if k != PARAMS}),
        multiply_adds=multiply_adds(apply, variables, args, kwargs),
        operations=operations(apply, variables, args, kwargs),
    )
