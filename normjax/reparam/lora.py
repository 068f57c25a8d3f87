"""Low-rank adapters of frozen kernels, and those of pruned ones (PERP)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.core.moments import at_least_float32
from normjax.reparam.base import KERNEL, REPARAMS, Arrays, Reparameterization


def low_rank(a: jax.Array, b: jax.Array, kernel: jax.Array) -> jax.Array:
    """A B, in the shape of a kernel.

    Args:
      a: [n, rank], n the product of all axes of the kernel but the last.
      b: [rank, out].  kernel: [..., in, out].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> a, b = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 10.0]])
      >>> print(reparam.low_rank(a, b, jnp.zeros((1, 2, 2))))
      [[[ 1. 10.]
        [ 2. 20.]]]
    """
    a, b = at_least_float32(a), at_least_float32(b)
    return jnp.matmul(a, b, precision=EXACT).reshape(kernel.shape)


def alive(kernel: jax.Array) -> jax.Array:
    """bool, where a kernel is not exactly 0: what pruning has left.

    Args:
      kernel: [..., in, out].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> print(reparam.alive(jnp.array([[0.0, -2.0]])))
      [[False  True]]
    """
    return kernel != 0


@REPARAMS.register("lora")
@dataclasses.dataclass(frozen=True)
class Lora(Reparameterization):
    """W' = W + alpha / rank A B: low-rank adaptation (LoRA; Hu et al., 2022).

    A [n, rank] starts uniform in 1 / sqrt(n), B [rank, out] at 0. W is meant to stay as
    it is (`config.optim.trainable="lora_"`). Of a pruned kernel the zeros go.

    Attributes:
      rank: of the adapter.  alpha: its scale, times 1 / rank.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = reparam.Lora(rank=1, alpha=1.0), {"kernel": jnp.zeros((2, 2))}
      >>> own, state = rule.create(layer, jax.random.key(0))
      >>> own = {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.array([[3.0, 4.0]])}
      >>> print(rule.effective(layer, own, state, train=True)[0]["kernel"])
      [[3. 4.]
       [3. 4.]]
    """

    rank: int = 16
    alpha: float = 32.0

    own: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")

    def create(self, layer: Arrays, key: jax.Array) -> tuple[Arrays, Arrays]:
        """`lora_a` and `lora_b`."""
        kernel = at_least_float32(layer[KERNEL])
        units = kernel.shape[-1]
        fan_in = kernel.size // units
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = uniform(key, (fan_in, self.rank), kernel.dtype)
        return {"lora_a": a, "lora_b": jnp.zeros((self.rank, units), kernel.dtype)}, {}

    def effective(
        self, layer: Arrays, own: Arrays, state: Arrays, *, train: bool
    ) -> tuple[Arrays, Arrays]:
        """`kernel` is replaced; see the class."""
        kernel = at_least_float32(layer[KERNEL])
        added = self.added(kernel, own, train)
        return {**layer, KERNEL: kernel + self.alpha / self.rank * added}, state

    def added(self, kernel: jax.Array, own: Arrays, train: bool) -> jax.Array:
        """What times alpha / rank is added to the kernel."""
        del train
        return low_rank(own["lora_a"], own["lora_b"], kernel)


@REPARAMS.register("mask_lora")
@dataclasses.dataclass(frozen=True)
class MaskLora(Lora):
    """W' = W + alpha / rank (A B) * (W != 0): zeros stay (PERP; Zimmer et al., 2023).

    Merging changes nothing. What is not pruned but exactly 0 counts as pruned.

    Attributes:
      rank: of the adapter.  alpha: its scale, times 1 / rank.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = reparam.MaskLora(rank=1, alpha=1.0), {"kernel": jnp.eye(2)}
      >>> own = {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.array([[3.0, 4.0]])}
      >>> print(rule.effective(layer, own, {}, train=True)[0]["kernel"])
      [[4. 0.]
       [0. 5.]]
    """

    def added(self, kernel, own, train):
        """A B where the kernel is not 0."""
        return jnp.where(alive(kernel), super().added(kernel, own, train), 0)


@REPARAMS.register("lora_prune")
@dataclasses.dataclass(frozen=True)
class LoraPrune(Lora):
    """`Lora` in training, `MaskLora` behind it: pruned at the end (PERP; 2023).

    Evaluation and merging compute with the masked adapter, other than training did.

    Attributes:
      rank: of the adapter.  alpha: its scale, times 1 / rank.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = reparam.LoraPrune(rank=1, alpha=1.0), {"kernel": jnp.eye(2)}
      >>> own = {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.array([[3.0, 4.0]])}
      >>> for train in (True, False):
      ...     print(rule.effective(layer, own, {}, train=train)[0]["kernel"])
      [[4. 4.]
       [3. 5.]]
      [[4. 0.]
       [0. 5.]]
    """

    def added(self, kernel, own, train):
        """A B, in evaluation where the kernel is not 0."""
        added = super().added(kernel, own, train)
        return added if train else jnp.where(alive(kernel), added, 0)


@REPARAMS.register("scale_lora")
@dataclasses.dataclass(frozen=True)
class ScaleLora(Reparameterization):
    """W' = W * (A B), A B = 1 at first: zeros stay (PERP; Zimmer et al., 2023).

    MultLoRA in an older name. A [n, rank] and B [rank, out] start at 1 / sqrt(rank).

    Attributes:
      rank: of the adapter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> rule, layer = reparam.ScaleLora(rank=4), {"kernel": jnp.array([[3.0, 0.0]])}
      >>> own, state = rule.create(layer, jax.random.key(0))
      >>> print(
      ...     own["lora_a"], rule.effective(layer, own, state, train=True)[0]["kernel"]
      ... )
      [[0.5 0.5 0.5 0.5]] [[3. 0.]]
    """

    rank: int = 16

    own: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")

    def create(self, layer, key):
        """`lora_a` and `lora_b`."""
        del key
        kernel = at_least_float32(layer[KERNEL])
        units = kernel.shape[-1]
        shapes = {
            "lora_a": (kernel.size // units, self.rank),
            "lora_b": (self.rank, units),
        }
        start = self.rank**-0.5
        return {k: jnp.full(s, start, kernel.dtype) for k, s in shapes.items()}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        kernel = at_least_float32(layer[KERNEL])
        factor = low_rank(own["lora_a"], own["lora_b"], kernel)
        return {**layer, KERNEL: kernel * factor}, state
