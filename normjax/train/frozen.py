"""Norms of which nothing is trained, evaluated as at the end of training."""

from typing import Any, NamedTuple

import flax.linen as nn
from flax.traverse_util import flatten_dict

from normjax import optim
from normjax.core.collections import BATCH_STATS


class Frozen(NamedTuple):
    """A model some of whose norms are called with train=False in every call.

    In its place wherever only `apply` is called.

    Attributes:
      model: anything with the `apply` of a Flax module.
      modules: paths of the norms, "blocks_0/norm1".
    """

    model: Any
    modules: frozenset[str]

    def apply(self, variables: dict[str, Any], x: Any, **arguments: Any) -> Any:
        """As `model.apply`."""

        def still(call, args, kwargs, context):
            at = "/".join(context.module.path)
            if context.method_name == "__call__" and at in self.modules:
                kwargs = {**kwargs, "train": False}
            return call(*args, **kwargs)

        with nn.intercept_methods(still):
            return self.model.apply(variables, x, **arguments)


def frozen_modules(
    config: Any, state: Any, scanned: tuple[str, ...] = ()
) -> frozenset[str]:
    """Paths of modules with batch statistics that `config.optim` leaves as they are.

    Those whose parameters are all frozen; of a norm without any, all of what is around
    it.

    Args:
      config: `config.optim`.
      state: of the run, or its shapes.
    """
    stats: Any = state.model_state.get(BATCH_STATS, {})
    flat: Any = flatten_dict(stats, sep="/")
    norms = {path.rpartition("/")[0] for path in flat}
    params = flatten_dict(optim.roles(config, state.params, scanned), sep="/")

    def is_frozen(norm: str) -> bool:
        found = [role for path, role in params.items() if path.startswith(f"{norm}/")]
        if not found and "/" in norm:
            return is_frozen(norm.rpartition("/")[0])
        return set(found) == {"freeze"}

    return frozenset(filter(is_frozen, norms))
