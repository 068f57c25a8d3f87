"""What the distance of two tokens does to their attention score: ALiBi and KERPLE.

A module `distance(N, M, positions) -> (gain, bias)`, each [1 or B, H, N, M] or None,
makes of a score x the score gain * x + bias. Distances are those to earlier keys,
D = max(i - j, 0): later ones are for a causal mask to hide. `positions`, int [B, N],
are those of the queries, while keys are at 0 to M - 1; None: the last query is at the
place of the last key.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.moments import at_least_float32
from normjax.core.registry import Registry

DISTANCES = Registry("distance")


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2**(-8 i / H) for i = 1..H; published order for other than powers of two.

    ALiBi (Press et al., 2022): then the slopes of the lower power of two, followed by
    every second one of the next.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, lower + 1) / lower)
    finer = 2.0 ** (-4 * np.arange(1, 2 * lower + 1) / lower)
    return np.concatenate((slopes, finer[::2][: num_heads - lower]))


class Distance(nn.Module):
    """Base: distances and learned numbers per head.

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.
    """

    num_heads: int
    param_dtype: Dtype = jnp.float32

    def _distances(
        self, queries: int, keys: int, positions: jax.Array | None
    ) -> np.ndarray | jax.Array:
        """[1 or B, 1, N, M]; constants without `positions`."""
        if positions is not None:
            places = jnp.arange(keys).reshape(1, 1, 1, -1)
            return jnp.maximum(positions[:, None, :, None] - places, 0)
        rows = np.arange(keys - queries, keys)
        return np.maximum(rows[:, None] - np.arange(keys), 0)[None, None]

    def _number(self, name: str, end: float, most: float | None = None) -> jax.Array:
        """[1, H, 1, 1], uniform on [0, end) at first, read as in [0.01, most].

        The gradient does not see the bounds: the released code projects the stored
        number before every forward pass, so that it can come back from outside.
        """
        init = nn.initializers.uniform(end)
        stored = self.param(name, init, (self.num_heads,), self.param_dtype)
        stored = at_least_float32(stored).reshape(1, -1, 1, 1)
        return stored + jax.lax.stop_gradient(jnp.clip(stored, 0.01, most) - stored)


def _power(distance: np.ndarray | jax.Array, exponent: jax.Array) -> jax.Array:
    """distance**exponent, whose derivative by the exponent is 0 at distance 0."""
    apart = jnp.asarray(distance, exponent.dtype)
    return jnp.where(apart > 0, jnp.where(apart > 0, apart, 1) ** exponent, 0)


@DISTANCES.register("alibi")
class Alibi(Distance):
    """x - s_h D with fixed slopes s_h (ALiBi; Press et al., 2022)."""

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        slopes = alibi_slopes(self.num_heads).reshape(1, -1, 1, 1)
        bias = -slopes * self._distances(queries, keys, positions)
        return None, jnp.asarray(bias, jnp.promote_types(self.param_dtype, "float32"))


@DISTANCES.register("kerple_log")
class KerpleLog(Distance):
    """x - p log(1 + a D) with learned p and a per head (KERPLE; Chi et al., 2022)."""

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        p, a = self._number("bias_p", 2.0), self._number("bias_a", 1.0)
        return None, -p * jnp.log1p(a * self._distances(queries, keys, positions))


@DISTANCES.register("kerple_power")
class KerplePower(Distance):
    """x - a D**p with learned a and p <= 2 per head (KERPLE; Chi et al., 2022)."""

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        return None, self._bias(self._distances(queries, keys, positions))

    def _bias(self, distance: np.ndarray | jax.Array) -> jax.Array:
        p, a = self._number("bias_p", 2.0, 2.0), self._number("bias_a", 1.0)
        return -a * _power(distance, p)

    def _gain(self, distance: np.ndarray | jax.Array) -> jax.Array:
        p, a = self._number("gain_p", 2.0, 2.0), self._number("gain_a", 1.0)
        return jnp.exp(-a * _power(distance, p))


@DISTANCES.register("kerple_power_gain")
class KerplePowerGain(KerplePower):
    """x exp(-a D**p) with learned a and p <= 2 per head (KERPLE; Chi et al., 2022)."""

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (gain [1 or B, H, N, M], None)."""
        return self._gain(self._distances(queries, keys, positions)), None


@DISTANCES.register("kerple_power_both")
class KerplePowerBoth(KerplePower):
    """x exp(-a' D**p') - a D**p, all learned per head (KERPLE; Chi et al., 2022)."""

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (gain, bias), both [1 or B, H, N, M]."""
        distance = self._distances(queries, keys, positions)
        return self._gain(distance), self._bias(distance)
