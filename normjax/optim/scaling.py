"""Rates, decays and initial scales by the width of a model and the size of a batch."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError, one_of
from normjax.optim.groups import path_name

KINDS = ("adam", "sgd")
MATRIX = 2


class WidthFactors(NamedTuple):
    """How a parameter of a wide model differs from that of its base model.

    Attributes:
      width_axes: of its axes, how many grow with the width.
      width: the last of them, relative to the base.
      initial: factor of its initial standard deviation, which is that of the base
        width.
      adam, sgd: factors of the learning rate.
      adam_decay, sgd_decay: factors of weight decay where it is multiplied by the
        rate: the product does not depend on the width.

    Example:
      >>> from normjax.optim import width_factors
      >>> factors = width_factors((64, 64), (128, 128), (256, 256))
      >>> factors.adam, factors.adam_decay, factors.initial
      (0.25, 4.0, 0.5)
    """

    width_axes: int
    width: float
    initial: float
    adam: float
    sgd: float
    adam_decay: float
    sgd_decay: float


def width_factors(
    base: tuple[int, ...],
    delta: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    in_axis: int = -2,
    out_axis: int = -1,
) -> WidthFactors:
    """Maximal update parametrization (muP; Yang et al., 2021 and 2022).

    With m the relative width of the axes where base and delta model differ:

    | parameter | initial | Adam | SGD |
    | --- | --- | --- | --- |
    | two axes of width (hidden) | m_in^-1/2 | 1 / m_in | m_out / m_in |
    | one (embedding, vector, readout) | 1 | 1 | m |
    | none | 1 | 1 | 1 |

    Initial values by 1 / sqrt(inputs) of readouts and biases are times m^1/2. The input
    of the readout is divided by m (`mup_readout`); logits are q k sqrt(base) / head.

    Args:
      base: shape in the base model.
      delta: shape in a model of another width.
      shape: shape in the model to be trained.
      in_axis, out_axis: of a matrix's inputs and outputs.

    Raises:
      UserError: other ranks, or more than two axes of width.

    Example:
      >>> from normjax.optim import width_factors
      >>> width_factors((10, 64), (10, 128), (10, 256)).sgd  # an embedding
      4.0
    """
    if not len(base) == len(delta) == len(shape):
        raise UserError(f"shapes of other ranks: {base}, {delta} and {shape}")
    ratios = [n / b for n, b in zip(shape, base, strict=True)]
    wide = [i for i, (b, d) in enumerate(zip(base, delta, strict=True)) if b != d]
    if len(wide) > MATRIX:
        raise UserError(f"more than two axes of {base} and {delta} differ")
    fixed = [i for i in range(len(shape)) if i not in wide and ratios[i] != 1]
    if fixed:
        raise UserError(f"{shape} differs from {base} where {delta} does not")
    into, out = (
        ratios[axis] if len(shape) > 1 else 1.0 for axis in (in_axis, out_axis)
    )
    width = ratios[wide[-1]] if wide else 1.0
    hidden = len(wide) == MATRIX
    adam = 1 / into if hidden else 1.0
    sgd = out / into if hidden else width
    return WidthFactors(
        width_axes=len(wide),
        width=width,
        initial=into**-0.5 if hidden else 1.0,
        adam=adam,
        sgd=sgd,
        adam_decay=1 / adam,
        sgd_decay=1 / sgd,
    )


def mup_table(base: Any, delta: Any, params: Any, **axes: int) -> Any:
    """The `width_factors` of every parameter of a model, a tree of them.

    Args:
      base: parameters of the base model, or their shapes.
      delta: those of a model of another width.
      params: those of the model to be trained.
      **axes: arguments of `width_factors`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import mup_table
      >>> base, delta, wide = ({"scale": jnp.ones(n)} for n in (8, 16, 32))
      >>> mup_table(base, delta, wide)["scale"].sgd
      4.0
    """
    return jax.tree.map(
        lambda b, d, p: width_factors(b.shape, d.shape, p.shape, **axes),
        base,
        delta,
        params,
    )


def mup_groups(table: Any, weight_decay: float, *, optimizer: str = "adam") -> tuple:
    """Rules for `config.optim.groups`: rates and decays of muP.

    Args:
      table: of `mup_table`.
      weight_decay: at the base width, of every parameter.
      optimizer: "adam" or "sgd", whose factors they are.

    Raises:
      UserError: another kind of optimizer.

    Example:
      >>> from normjax.optim import mup_groups, width_factors
      >>> table = {"fc": {"kernel": width_factors((8, 8), (16, 16), (32, 32))}}
      >>> rules = mup_groups(table, 0.5)
      >>> [(rule["pattern"], rule["learning_rate"]) for rule in rules]
      [('^fc/kernel$', 0.25)]
    """
    _check_kind(optimizer)
    leaves = jax.tree_util.tree_leaves_with_path(
        table, is_leaf=lambda x: isinstance(x, WidthFactors)
    )
    return tuple(
        {
            "pattern": f"^{re.escape(path_name(path))}$",
            "learning_rate": getattr(factors, optimizer),
            "weight_decay": weight_decay * getattr(factors, f"{optimizer}_decay"),
        }
        for path, factors in leaves
    )


def _check_kind(optimizer: str) -> None:
    if optimizer not in KINDS:
        raise UserError(one_of("kind of optimizer", optimizer, KINDS))


def mup_readout(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    width: float,
    multiplier: float = 1.0,
) -> jax.Array:
    """y = (multiplier x / width) kernel + bias, the readout of muP.

    Args:
      x: [..., in].  kernel: [in, out].  bias: [out], which is not divided.
      width: relative to the base model.  multiplier: of the output.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import mup_readout
      >>> print(mup_readout(jnp.ones(4), jnp.ones((4, 1)), jnp.ones(1), width=2.0))
      [3.]
    """
    y = (multiplier * x / width) @ kernel
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def robust_factors(width_axes: int, width: float) -> tuple[float, float]:
    """(factor of AdamW's rate, of its weight decay) (Fan et al., 2025).

    Matrices: 1 / width and sqrt(width), which keeps their top singular value,
    proportional to sqrt(rate / decay) width^(3/4). Others: 1 and 0, no decay.

    Args:
      width_axes: axes of the parameter that grow with the width.
      width: relative to the base model.

    Example:
      >>> from normjax.optim import robust_factors
      >>> robust_factors(2, 4.0), robust_factors(1, 4.0)
      ((0.25, 2.0), (1.0, 0.0))
    """
    return (1 / width, width**0.5) if width_axes == MATRIX else (1.0, 0.0)


def batch_scaled_rate(
    rate: float,
    base_batch: int,
    batch: int | jax.Array,
    *,
    optimizer: str = "adam",
    ceiling: float | None = None,
) -> Any:
    """The learning rate of another batch (Granziol et al., 2022).

    SGD: rate batch / base, up to a ceiling; adaptive methods: rate sqrt(batch / base).

    Args:
      rate: at the base batch.  base_batch, batch: sizes.
      optimizer: "adam" or "sgd".  ceiling: the largest rate; None: there is none.

    Raises:
      UserError: another kind of optimizer.

    Example:
      >>> from normjax.optim import batch_scaled_rate
      >>> (
      ...     batch_scaled_rate(0.1, 128, 512),
      ...     batch_scaled_rate(0.1, 128, 512, optimizer="sgd"),
      ... )
      (0.2, 0.4)
    """
    _check_kind(optimizer)
    ratio = batch / base_batch
    scaled = rate * (ratio if optimizer == "sgd" else ratio**0.5)
    if ceiling is None:
        return scaled
    found = jnp.minimum(scaled, ceiling)
    return found if isinstance(batch, jax.Array) else float(found)
