"""A model with its weights as one StableHLO program, for any batch size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.tasks import Objective

Row = Mapping[str, jax.ShapeDtypeStruct]


def predictor(
    model: nn.Module, variables: Mapping[str, Any], objective: Objective
) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
    """batch -> logits, as at evaluation.

    The batch is what the objective reads: images as uint8, which are normalised inside,
    or tokens.
    """

    def predict(batch):
        x, known = objective.inputs(batch)
        logits: Any = model.apply(variables, x, train=False, **known)
        return logits

    return predict


def input_row(objective: Objective, row: Row) -> dict[str, jax.ShapeDtypeStruct]:
    """Those arrays of a row that logits depend on: no labels.

    Args:
      row: shapes and dtypes without the batch, as of `Task.row`.
    """
    batch = {k: jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for k, s in row.items()}
    jaxpr = jax.make_jaxpr(objective.inputs)(batch).jaxpr
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    used |= {id(v) for v in jaxpr.outvars}
    pairs = zip(sorted(row), jaxpr.invars, strict=True)
    return {name: row[name] for name, v in pairs if id(v) in used}


def export_model(
    predict: Callable[[Any], jax.Array],
    row: Row,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """`predict` as a serialized `jax.export.Exported`; its weights are inside.

    Args:
      predict: of `predictor`.  row: of `input_row`; the batch size stays symbolic.
      platforms: "cpu", "cuda", "tpu"; None: the one at hand.

    Returns:
      the bytes of the artifact, for `load` or `jax.export.deserialize`.

    Example:
      >>> import jax
      >>> from normjax import export
      >>> row = {"x": jax.ShapeDtypeStruct((2,), "float32")}
      >>> platforms = ["cpu", "cuda"]
      >>> artifact = export.export_model(lambda batch: 2 * batch["x"], row, platforms)
      >>> jax.export.deserialize(bytearray(artifact)).platforms
      ('cpu', 'cuda')
    """
    scope = jax.export.SymbolicScope()
    batch = {
        name: jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(_dims(s.shape), scope=scope), s.dtype
        )
        for name, s in row.items()
    }
    exported = jax.export.export(jax.jit(predict), platforms=platforms)(batch)
    return bytes(exported.serialize())


def load(artifact: bytes) -> Callable[[Mapping[str, Any]], jax.Array]:
    """The program of an artifact: batch -> logits [B, ...].

    Nothing of normjax is needed to run it: this is `jax.export.deserialize`.

    Args:
      artifact: bytes of `export_model`.

    Raises:
      UserError: the bytes are no artifact, or none for this platform.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import export
      >>> row = {"x": jax.ShapeDtypeStruct((2,), "float32")}
      >>> artifact = export.export_model(lambda batch: 2 * batch["x"], row)
      >>> predict = export.load(artifact)
      >>> print(predict({"x": jnp.ones((3, 2))}).shape)  # any number of rows
      (3, 2)
    """
    try:
        exported = jax.export.deserialize(bytearray(artifact))
    except Exception as error:
        raise UserError(f"no artifact of jax.export: {error}") from error
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    if platform not in exported.platforms:
        known = ", ".join(exported.platforms)
        raise UserError(f"the artifact runs on {known}; this is {platform}")
    return exported.call


def largest_difference(
    predict: Callable[[Any], jax.Array],
    loaded: Callable[[Any], jax.Array],
    batches: Sequence[Any],
) -> float:
    """The largest difference of a logit between two predictors."""
    worst = 0.0
    for batch in batches:
        a, b = jax.jit(predict)(batch), loaded(batch)
        difference = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
        worst = max(worst, float(jnp.max(difference)))
    return worst


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(["b", *map(str, shape)])
