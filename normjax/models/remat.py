"""What the backward pass keeps of a block, and what it computes again."""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax

from normjax.core.errors import UserError, one_of

_Module = TypeVar("_Module", bound=nn.Module)


def _convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


def _and_convolutions(policy: Callable[..., bool]) -> Callable[..., bool]:
    return jax.checkpoint_policies.save_from_both_policies(policy, _convolutions)


REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "projections": _and_convolutions(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "products": _and_convolutions(jax.checkpoint_policies.dots_saveable),
}
"""What the argument `remat` of a model keeps of a block, by its name.

`nothing` but the input of the block, as `remat=True`; results of `projections`, which
are products with weights, and of convolutions; those of all `products`, of attention
too. Norms, activations and softmax are computed again by each.

Example:
  >>> from normjax import models
  >>> vit = models.build("deit_tiny", num_classes=10, remat="projections")
  >>> sorted(models.REMAT_POLICIES)
  ['nothing', 'products', 'projections']
"""


def recomputed(
    kind: type[_Module], remat: bool | str, static_argnums: tuple[int, ...] = (2,)
) -> type[_Module]:
    """`kind`, whose results the backward pass computes again, all but what is kept.

    Args:
      remat: False: all is kept; a key of `REMAT_POLICIES`; True for "nothing".
      static_argnums: arguments of `__call__`, self counted, that are no arrays.

    Raises:
      UserError: no such policy.
    """
    if remat is False:
        return kind
    name = "nothing" if remat is True else remat
    if name not in REMAT_POLICIES:
        raise UserError(one_of("remat", name, REMAT_POLICIES))
    return nn.remat(kind, policy=REMAT_POLICIES[name], static_argnums=static_argnums)
