"""How much layers mind fewer bits, and which bits fit a budget (Cai et al., 2020)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def divergence(logits: jax.Array, quantized: jax.Array) -> jax.Array:
    """Mean over examples of KL(softmax(logits) || softmax(quantized)), nats.

    ZeroQ's sensitivity of a layer, if that alone is quantized (Cai et al., 2020).

    Args:
      logits, quantized: [B, K].

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> logits = jnp.array([[0.0, 0.0]])
      >>> float(quantize.divergence(logits, logits))
      0.0
      >>> bool(quantize.divergence(logits, jnp.array([[1.0, 0.0]])) > 0.1)
      True
    """
    log_p, log_q = (
        jax.nn.log_softmax(at_least_float32(z)) for z in (logits, quantized)
    )
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


class Allocation(NamedTuple):
    """Bits of every layer.

    Attributes:
      size: sum of size times bits.  sensitivity: sum over the layers.
      bits: of each layer.

    Example:
      >>> from normjax import quantize
      >>> quantize.allocate_bits([[0.5, 0.1]], [10], (2, 4), budget=30)
      Allocation(size=20, sensitivity=0.5, bits=(2,))
    """

    size: int
    sensitivity: float
    bits: tuple[int, ...]


def allocations(
    sensitivity: Any, sizes: Sequence[int], candidates: Sequence[int]
) -> list[Allocation]:
    """The Pareto front of size and summed sensitivity, by size.

    Layers count independently, so the front of the first l layers with each choice for
    the next, less what another beats in both, is that of l + 1.

    Args:
      sensitivity: [layers, candidates].
      sizes: weights of each layer.  candidates: bits.

    Example:
      >>> from normjax import quantize
      >>> front = quantize.allocations([[0.5, 0.1], [0.9, 0.2]], [10, 10], (2, 4))
      >>> [(a.size, round(a.sensitivity, 2), a.bits) for a in front]
      [(40, 1.4, (2, 2)), (60, 0.7, (2, 4)), (80, 0.3, (4, 4))]
    """
    front = [Allocation(0, 0.0, ())]
    for row, size in zip(np.asarray(sensitivity, np.float64), sizes, strict=True):
        longer = [
            Allocation(
                a.size + int(size) * bits, a.sensitivity + float(s), (*a.bits, bits)
            )
            for a in front
            for s, bits in zip(row, map(int, candidates), strict=True)
        ]
        front = []
        for one in sorted(longer):
            if not front or one.sensitivity < front[-1].sensitivity:
                front.append(one)
    return front


def allocate_bits(
    sensitivity: Any, sizes: Sequence[int], candidates: Sequence[int], budget: int
) -> Allocation:
    """The bits with the least summed sensitivity whose size is within a budget.

    Args:
      sensitivity: [layers, candidates].
      sizes: weights of each layer.  candidates: bits.
      budget: bits of all weights together.

    Raises:
      UserError: even the fewest bits are more.

    Example:
      >>> from normjax import quantize
      >>> table = [[0.5, 0.1], [0.9, 0.2]]
      >>> quantize.allocate_bits(table, [10, 10], (2, 4), budget=70).bits
      (2, 4)
    """
    front = allocations(sensitivity, sizes, candidates)
    within = [one for one in front if one.size <= budget]
    if not within:
        raise UserError(f"budget {budget} is below {front[0].size}, the fewest bits")
    return within[-1]
