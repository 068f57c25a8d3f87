"""Rates, decays and initial values by the width of a model (muP), for any of ours."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.collections import PARAMS
from normjax.core.errors import UserError
from normjax.optim import WidthFactors, mup_groups, width_factors

WIDTHS = ("dim", "dims", "num_heads", "mlp_hidden")
"""Arguments of models that grow with the width."""
SGD = frozenset({"sgd", "sgdp"})
"""Optimizers whose update is as large as the gradient; all others normalize it."""


READ_BY_TABLE = "norm"
"""The last norm of a model of tokens."""


class Width(NamedTuple):
    """What a run does otherwise because of its width.

    Attributes:
      groups: rules as of `config.optim.groups`.
      begin: initial parameters -> those of the width.
    """

    groups: tuple[dict[str, Any], ...]
    begin: Callable[[Any], Any]


def width_of(
    config: Any, model: nn.Module, example: Callable[[], tuple[Any, Any]]
) -> Width | None:
    """Maximal update parametrization relative to `config.optim.mup_base_width`.

    Yang et al., 2022, in the form that needs no multiplier inside of the model (table
    3): with m the width by the base width,

    | parameter | initial deviation | Adam | SGD |
    | --- | --- | --- | --- |
    | both axes grow (hidden) | m^-1/2 of the base's | 1 / m | 1 |
    | the inputs grow (readout) | 1 / m | 1 / m | 1 / m |
    | the outputs grow, vectors | 1 | 1 | m |

    and weight decay over the factor of the rate. Heads keep their width, so that
    their scale 1 / sqrt(K) stays what it is. A table of tokens that is the readout as
    well begins and learns as a table; the 1 / m of a readout is in the norm before it,
    whose scale and bias begin at 1 / m of theirs and learn at 1 / m of the rate, which
    is the same as a factor of the logits.

    Args:
      config: of the run.  model: that it trains.
      example: gives the `Objective.inputs` of a row, where they are needed.

    Returns:
      None without a base width.

    Raises:
      UserError: a model whose width does not divide, or whose readout is its table of
        tokens without a norm that learns before it, or other rules beside.
    """
    fields, base = config.optim, config.optim.get("mup_base_width", 0)
    if not base:
        return None
    _check(config, model)
    inputs = example()
    smaller = model.clone(**_narrow(model, base))
    small, narrow_deviations = _initial(smaller, inputs)
    wide, wide_deviations = _initial(model, inputs)
    kind = "sgd" if fields.name in SGD else "adam"
    table = jax.tree.map(_factors, small, wide)
    begin = jax.tree.map(
        _initial_factor, table, narrow_deviations, wide_deviations, is_leaf=_is_row
    )
    factors = jax.tree.map(lambda row: row[0], table, is_leaf=_is_row)
    if getattr(model, "tied", False):
        begin, factors = _tied(begin, factors, smaller.dim / model.dim)
    decay = fields.get("weight_decay", 0.0)
    return Width(
        tuple(_groups(factors, kind, decay)),
        lambda params: jax.tree.map(
            lambda x, f: (x * f).astype(x.dtype), params, begin
        ),
    )


def _check(config: Any, model: nn.Module) -> None:
    where = f"config.optim.mup_base_width={config.optim.mup_base_width}"
    if config.optim.get("groups"):
        raise UserError(f"{where} makes config.optim.groups: there are some already")
    if config.get("reparam"):
        raise UserError(
            f"{where}: it does not know what config.reparam makes of weights"
        )


def _narrow(model: nn.Module, base: int) -> dict[str, Any]:
    """The arguments of the same model of the base width."""
    own = {name: getattr(model, name, None) for name in WIDTHS}
    own = {name: value for name, value in own.items() if value is not None}
    width = own.get("dim", own.get("dims"))
    if width is None:
        name = type(model).__name__
        raise UserError(f"config.optim.mup_base_width: {name} has no dim or dims")
    width = width if isinstance(width, int) else width[0]

    def scaled(name, value):
        if not isinstance(value, int):
            return tuple(scaled(name, v) for v in value)
        if value * base % width:
            raise UserError(
                f"config.optim.mup_base_width={base}: {name} {value} of width {width} "
                "has no whole number there; heads keep their width"
            )
        return value * base // width

    return {name: scaled(name, value) for name, value in own.items()}


def _initial(model: nn.Module, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
    """Shapes and standard deviations of the parameters that a model begins with."""
    x, known = inputs

    def deviations():
        params = model.init(jax.random.key(0), x, train=False, **known)[PARAMS]
        return jax.tree.map(jnp.std, params)

    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), x, train=False, **known)[PARAMS]
    )
    quick = {"xla_backend_optimization_level": 0}
    found = jax.jit(deviations, compiler_options=quick)()
    return shapes, jax.tree.map(float, jax.device_get(found))


def _factors(small: Any, wide: Any) -> tuple[WidthFactors, float]:
    """Of one parameter, and how much its inputs grow."""
    found = width_factors(small.shape, wide.shape, wide.shape)
    into = wide.shape[-2] / small.shape[-2] if len(wide.shape) > 1 else 1.0
    if found.width_axes != 1 or into == 1:
        return found, into
    adam, sgd = found.adam / into, found.sgd / into**2
    return (
        found._replace(
            initial=found.initial / into,
            adam=adam,
            sgd=sgd,
            adam_decay=1 / adam,
            sgd_decay=1 / sgd,
        ),
        into,
    )


def _is_row(x: Any) -> bool:
    return isinstance(x, tuple) and isinstance(x[0], WidthFactors)


def _initial_factor(row: tuple[WidthFactors, float], small: float, wide: float):
    """From the deviation that the initializer gives to that of the width.

    The initializer's own power of the width is a multiple of 1/2; what was drawn says
    which.
    """
    factors, into = row
    if into == 1 or not small or not wide:
        return 1.0
    power = round(2 * math.log(wide / small) / math.log(into)) / 2
    return factors.initial / into**power


def _tied(begin: Any, factors: Any, share: float) -> tuple[Any, Any]:
    """Initial values and rates of a model whose readout is its table.

    With s' = share s, an update of s by Adam moves s' by its share, one by SGD by the
    square of it, times 1 / share for a vector.
    """
    if not begin.get(READ_BY_TABLE):
        raise UserError(
            "config.optim.mup_base_width: a tied readout needs a last norm that learns "
            "(model.norm), or its own table (model.tied=False)"
        )
    own = factors[READ_BY_TABLE]
    slower = {"adam": share, "sgd": share, "adam_decay": 0.0, "sgd_decay": 0.0}
    own = jax.tree.map(lambda f: f._replace(**slower), own, is_leaf=_is_factors)
    values = jax.tree.map(lambda _: share, begin[READ_BY_TABLE])
    return {**begin, READ_BY_TABLE: values}, {**factors, READ_BY_TABLE: own}


def _is_factors(x: Any) -> bool:
    return isinstance(x, WidthFactors)


def _groups(factors: Any, kind: str, decay: float):
    """The rules of `mup_groups` that change something, equal ones as one."""
    rows: dict[tuple[float, float], list[str]] = {}
    for rule in mup_groups(factors, decay, optimizer=kind):
        if rule["learning_rate"] != 1:
            key = rule["learning_rate"], rule["weight_decay"]
            rows.setdefault(key, []).append(rule["pattern"])
    for (rate, decayed), patterns in rows.items():
        rule = {"pattern": "|".join(patterns), "learning_rate": rate}
        yield {**rule, "weight_decay": decayed} if kind == "adam" else rule
