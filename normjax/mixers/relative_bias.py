"""What the distance of two tokens does to their attention score: ALiBi and KERPLE.

A module `bias(N, M, positions) -> (gain, bias)`, each [1 or B, H, N, M] or None, makes
of a score x the score gain * x + bias. Distances are those to earlier keys,
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
from normjax.mixers.base import RELATIVE_BIASES
from normjax.mixers.ops.relative_bias import alibi_slopes, distances, power


class RelativeBias(nn.Module):
    """Base: learned numbers per head.

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.
    """

    num_heads: int
    param_dtype: Dtype = jnp.float32

    def number(self, name: str, end: float, most: float | None = None) -> jax.Array:
        """[1, H, 1, 1], uniform on [0, end) at first, read as in [0.01, most].

        The gradient does not see the bounds: the released code projects the stored
        number before every forward pass, so that it can come back from outside.
        """
        init = nn.initializers.uniform(end)
        stored = self.param(name, init, (self.num_heads,), self.param_dtype)
        stored = at_least_float32(stored).reshape(1, -1, 1, 1)
        return stored + jax.lax.stop_gradient(jnp.clip(stored, 0.01, most) - stored)


@RELATIVE_BIASES.register("alibi")
class Alibi(RelativeBias):
    """x - s_h D with fixed slopes s_h (ALiBi; Press et al., 2022).

    Attributes:
      num_heads: heads H.  param_dtype: of the bias.

    Example:
      >>> from normjax.mixers.relative_bias import Alibi
      >>> gain, bias = Alibi(num_heads=2).apply({}, 3, 3)
      >>> print(gain, bias.shape)
      None (1, 2, 3, 3)
      >>> print(16 * bias[0, 0, 2] + 0.0)  # the first slope is 1/16
      [-2. -1.  0.]
    """

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        slopes = alibi_slopes(self.num_heads).reshape(1, -1, 1, 1)
        bias = -slopes * distances(queries, keys, positions)
        return None, jnp.asarray(bias, jnp.promote_types(self.param_dtype, "float32"))


@RELATIVE_BIASES.register("kerple_log")
class KerpleLog(RelativeBias):
    """x - p log(1 + a D) with learned p and a per head (KERPLE; Chi et al., 2022).

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers.relative_bias import KerpleLog
      >>> (gain, bias), variables = KerpleLog(num_heads=2).init_with_output(
      ...     jax.random.key(0), 3, 3
      ... )
      >>> print(gain, bias.shape, sorted(variables["params"]))
      None (1, 2, 3, 3) ['bias_a', 'bias_p']
      >>> bool(bias[0, 0, 2, 0] < bias[0, 0, 2, 1] < 0), float(bias[0, 0, 2, 2]) == 0
      (True, True)
    """

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        p, a = self.number("bias_p", 2.0), self.number("bias_a", 1.0)
        return None, -p * jnp.log1p(a * distances(queries, keys, positions))


@RELATIVE_BIASES.register("kerple_power")
class KerplePower(RelativeBias):
    """x - a D**p with learned a and p <= 2 per head (KERPLE; Chi et al., 2022).

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers.relative_bias import KerplePower
      >>> (gain, bias), variables = KerplePower(num_heads=2).init_with_output(
      ...     jax.random.key(0), 3, 3
      ... )
      >>> print(gain, bias.shape, sorted(variables["params"]))
      None (1, 2, 3, 3) ['bias_a', 'bias_p']
    """

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (None, bias [1 or B, H, N, M])."""
        return None, _fall(self, "bias", distances(queries, keys, positions))


@RELATIVE_BIASES.register("kerple_power_gain")
class KerplePowerGain(RelativeBias):
    """x exp(-a D**p) with learned a and p <= 2 per head (KERPLE; Chi et al., 2022).

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers.relative_bias import KerplePowerGain
      >>> (gain, bias), variables = KerplePowerGain(num_heads=2).init_with_output(
      ...     jax.random.key(0), 3, 3
      ... )
      >>> print(gain.shape, bias, float(gain[0, 0, 0, 0]))  # 1 at no distance
      (1, 2, 3, 3) None 1.0
    """

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (gain [1 or B, H, N, M], None)."""
        fall = _fall(self, "gain", distances(queries, keys, positions))
        return jnp.exp(fall), None


@RELATIVE_BIASES.register("kerple_power_both")
class KerplePowerBoth(RelativeBias):
    """x exp(-a' D**p') - a D**p, all learned per head (KERPLE; Chi et al., 2022).

    Attributes:
      num_heads: heads H.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers.relative_bias import KerplePowerBoth
      >>> (gain, bias), variables = KerplePowerBoth(num_heads=2).init_with_output(
      ...     jax.random.key(0), 3, 3
      ... )
      >>> gain.shape, bias.shape, sorted(variables["params"])
      ((1, 2, 3, 3), (1, 2, 3, 3), ['bias_a', 'bias_p', 'gain_a', 'gain_p'])
    """

    @nn.compact
    def __call__(self, queries: int, keys: int, positions=None):
        """-> (gain, bias), both [1 or B, H, N, M]."""
        distance = distances(queries, keys, positions)
        gain = jnp.exp(_fall(self, "gain", distance))
        return gain, _fall(self, "bias", distance)


def _fall(module: RelativeBias, of: str, distance: np.ndarray | jax.Array) -> jax.Array:
    """-a D**p with learned `of`_p and `of`_a."""
    p, a = module.number(f"{of}_p", 2.0, 2.0), module.number(f"{of}_a", 1.0)
    return -a * power(distance, p)
