"""What the backward pass keeps of a block, and what it computes again."""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax

from normjax.core.errors import UserError, one_of

_Module = TypeVar("_Module", bound=nn.Module)


def _convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "projections": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _convolutions
    ),
}
"""What the argument `remat` of a model keeps of a block, by its name.

`nothing` but the input of the block, as `remat=True`; or the results of `projections`,
products with weights and convolutions, so that norms, activations and attention between
the tokens are computed again.

Example:
  >>> from normjax import models
  >>> vit = models.build("deit_tiny", num_classes=10, remat="projections")
  >>> sorted(models.REMAT_POLICIES)
  ['nothing', 'projections']
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
    if not isinstance(remat, str) and not remat:
        return kind
    name = remat if isinstance(remat, str) else "nothing"
    if name not in REMAT_POLICIES:
        raise UserError(one_of("remat", name, REMAT_POLICIES))
    return nn.remat(kind, policy=REMAT_POLICIES[name], static_argnums=static_argnums)
