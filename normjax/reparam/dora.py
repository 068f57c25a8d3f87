"""Low-rank adapters of a direction, and a magnitude of each unit."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.reparam.base import KERNEL, REPARAMS, Arrays, Reparameterization


@REPARAMS.register("dora")
@dataclasses.dataclass(frozen=True)
class Dora(Reparameterization):
    """Weight-decomposed low-rank adaptation (DoRA; Liu et al., 2024).

        D = W + alpha / rank A B        W' = D m / |D|, |D| by output unit

    |D| is a constant for the gradient. A [in, rank] starts at random, B [rank, out] at
    0, m [out] as |W|: the layer starts as it was. W is meant to stay as it is
    (`config.optim.trainable`); GradNormLoRP pre-trains A, B and m.

    Attributes:
      rank: of the adapter.  alpha: its scale, times 1 / rank.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = reparam.Dora(rank=1), {"kernel": jnp.array([[3.0], [4.0]])}
      >>> own, state = rule.create(layer, jax.random.key(0))
      >>> print(own["magnitude"])
      [5.]
      >>> own = {**own, "magnitude": jnp.array([10.0])}
      >>> made, _ = rule.effective(layer, own, state, train=True)
      >>> print(made["kernel"].ravel())
      [6. 8.]
    """

    rank: int = 8
    alpha: float = 16.0

    own: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "magnitude")

    def create(self, layer: Arrays, key: jax.Array) -> tuple[Arrays, Arrays]:
        """`lora_a`, `lora_b` and `magnitude`."""
        w = at_least_float32(layer[KERNEL])
        rows, units = w.reshape(-1, w.shape[-1]), w.shape[-1]
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        own = {
            "lora_a": uniform(key, (len(rows), self.rank), w.dtype),
            "lora_b": jnp.zeros((self.rank, units), w.dtype),
            "magnitude": jnp.linalg.norm(rows, axis=0),
        }
        return own, {}

    def effective(
        self, layer: Arrays, own: Arrays, state: Arrays, *, train: bool
    ) -> tuple[Arrays, Arrays]:
        """`kernel` is replaced; see the class."""
        del train
        w = at_least_float32(layer[KERNEL])
        rows = w.reshape(-1, w.shape[-1])
        direction = rows + self.alpha / self.rank * own["lora_a"] @ own["lora_b"]
        norm = jax.lax.stop_gradient(jnp.linalg.norm(direction, axis=0))
        made = direction * (own["magnitude"] / jnp.where(norm > 0, norm, 1))[None]
        return {**layer, KERNEL: made.reshape(w.shape)}, state
