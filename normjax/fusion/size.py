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
      variables: of `model`.
      *args, **kwargs: what it is called with. All are arrays or
        `jax.ShapeDtypeStruct`.
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
