"""Batch normalization on the Poincare ball, between tangent vectors at its origin."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dtypes import result_dtype
from normjax.core.moments import align_mask, at_least_float32
from normjax.norms.base import NORMS, along_channels, as_initializer


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, -1, keepdims=True)


def _radial(function, x: jax.Array, factor: jax.Array) -> jax.Array:
    """function(factor * |x|) * x / (factor * |x|), for function(z) ~ z at 0."""
    square = _dot(x, x)
    safe = factor * jnp.sqrt(jnp.where(square > 0, square, 1))
    return x * jnp.where(square > 0, function(safe) / safe, 1)


def project(x: jax.Array, c: jax.Array, margin: float) -> jax.Array:
    """x, pulled back to the norm (1 - margin) / sqrt(c) where it is longer."""
    square, limit = _dot(x, x), (1 - margin) / jnp.sqrt(c)
    long = square > jnp.square(limit)
    return x * jnp.where(long, limit / jnp.sqrt(jnp.where(long, square, 1)), 1)


def conformal(x: jax.Array, c: jax.Array) -> jax.Array:
    """Conformal factor 2 / (1 - c |x|**2) of the ball at x."""
    return 2 / (1 - c * _dot(x, x))


def mobius_add(x: jax.Array, y: jax.Array, c: jax.Array) -> jax.Array:
    """Mobius sum of points of the ball."""
    xy, xx, yy = _dot(x, y), _dot(x, x), _dot(y, y)
    numerator = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    return numerator / (1 + 2 * c * xy + c**2 * xx * yy)


def gyrate(a: jax.Array, b: jax.Array, v: jax.Array, c: jax.Array) -> jax.Array:
    """gyr[a, b] v = -(a + b) + (a + (b + v)) of Mobius sums, in closed form."""
    ab, aa, bb, av, bv = _dot(a, b), _dot(a, a), _dot(b, b), _dot(a, v), _dot(b, v)
    along_a = -(c**2) * av * bb + c * bv + 2 * c**2 * ab * bv
    along_b = -(c**2) * bv * aa - c * av
    return v + 2 * (along_a * a + along_b * b) / (1 + 2 * c * ab + c**2 * aa * bb)


def poincare_batch_normalize(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    c: jax.Array,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-6,
    margin: float = 4e-3,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """Move the points exp_0(x) to midpoint exp_0(mean) and the given variance.

        mu = midpoint of p_i = exp_0(x_i),  v = mean of dist(p_i, mu)**2
        y_i = log_0(exp_m(T log_mu(p_i) * sqrt(variance / (v + epsilon))))

    with m = exp_0(mean) and T the parallel transport from mu to m (van Spengler et al.,
    2023). The midpoint is that of gyrovectors: no iteration.

    Args:
      x: [..., C], tangent vectors at the origin.  mean: [C].  variance, c: scalars.
      mask: leading dims of x; True feeds mu and v.  epsilon: added to v.
      margin: points stay within (1 - margin) / sqrt(c) of the origin.
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      [..., C] in the dtype of x.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x, zero = jnp.array([[0.1, 0.2], [0.3, 0.2]]), jnp.zeros(2)
      >>> y = norms.poincare_batch_normalize(x, zero, variance=0.25, c=1.0)
      >>> print(jnp.linalg.norm(y, axis=-1).round(3))  # half a distance of 0.5
      [0.25 0.25]
    """
    axes, root = tuple(range(x.ndim - 1)), jnp.sqrt(c)

    def total(v):
        valid = True if mask is None else align_mask(mask, x)
        v = jnp.sum(v, axes, keepdims=True, where=valid)
        return v if axis_name is None else jax.lax.psum(v, axis_name)

    points = project(_radial(jnp.tanh, x, root), c, margin)
    target = project(_radial(jnp.tanh, along_channels(mean, x.ndim), root), c, margin)
    gamma = conformal(points, c) / 2
    count = total(jnp.ones_like(gamma))
    # At least 1 wherever a point is valid: gamma >= 1.
    middle = total(gamma * points) / jnp.maximum(total(gamma) - count / 2, 0.5)
    middle = _half(middle, c)
    tangent = mobius_add(-middle, points, c)
    tangent = _radial(jnp.arctanh, tangent, root) * (2 / conformal(middle, c))
    distance = jnp.square(conformal(middle, c)) * _dot(tangent, tangent)
    spread = total(distance) / jnp.maximum(count, 1)
    moved = gyrate(target, -middle, tangent, c)
    moved *= conformal(middle, c) / conformal(target, c)
    moved *= jnp.sqrt(variance / (spread + epsilon))
    step = _radial(jnp.tanh, moved, root * conformal(target, c) / 2)
    step *= conformal(target, c) / 2
    return _radial(jnp.arctanh, project(mobius_add(target, step, c), c, margin), root)


def _half(x: jax.Array, c: jax.Array) -> jax.Array:
    """The Mobius half of x: gamma / (1 + gamma) * x, gamma = 1 / sqrt(1 - c |x|**2)."""
    return x / (1 + jnp.sqrt(1 - c * _dot(x, x)))


@NORMS.register("poincare_batch_norm", "mask", "axis_name", "seq", "grid")
class PoincareBatchNorm(nn.Module):
    """Poincare midpoint batch normalisation (van Spengler et al., 2023).

    Every position is a vector of C entries, tangent at the origin of the ball of
    curvature -c; see `poincare_batch_normalize`. One mean point and one scalar variance
    over the positions that `mask` leaves. As published the statistics are those of the
    batch at evaluation too; there is no state. Parameters `mean` [C] and `variance` [].

    Attributes:
      curvature: c > 0.
      learn_curvature: learn it, as softplus of the parameter `raw_curvature` [].
      epsilon: added to the variance of the batch.
      margin: relative distance kept from the edge of the ball; None for 4e-3 in float32
        and 1e-5 in float64.
      axis_name: mesh axis or axes to reduce over.
      dtype: of the result; None infers it from input and parameters.
      param_dtype, mean_init, variance_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.PoincareBatchNorm(curvature=0.5)
      >>> x = jnp.array([[0.1, 0.2], [0.3, 0.2]])
      >>> y, variables = norm.init_with_output(jax.random.key(1), x)
      >>> y.shape, {k: v.shape for k, v in sorted(variables["params"].items())}
      ((2, 2), {'mean': (2,), 'variance': ()})
    """

    curvature: float = 1.0
    learn_curvature: bool = False
    epsilon: float = 1e-6
    margin: float | None = None
    axis_name: str | tuple[str, ...] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    mean_init: Initializer | float = nn.initializers.zeros
    variance_init: Initializer | float = nn.initializers.ones

    reads_batch: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> [..., C]; `mask` as in BatchNorm, `train` unused."""
        del train
        params = {
            "mean": self._learned("mean", self.mean_init, x.shape[-1:]),
            "variance": self._learned("variance", self.variance_init),
        }
        wide = at_least_float32(x)
        c = jnp.asarray(self.curvature, wide.dtype)
        if self.learn_curvature:
            inverse_softplus = jnp.log(jnp.expm1(c))
            raw = self.param(
                "raw_curvature", lambda key: inverse_softplus.astype(self.param_dtype)
            )
            params["raw_curvature"], c = raw, nn.softplus(raw)
        margin = self.margin
        if margin is None:
            margin = 1e-5 if wide.dtype == jnp.float64 else 4e-3
        y = poincare_batch_normalize(
            wide,
            params["mean"],
            params["variance"],
            c,
            mask=mask,
            epsilon=self.epsilon,
            margin=margin,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
        return y.astype(result_dtype(x, *params.values(), dtype=self.dtype))

    def _learned(self, name, init, shape=()):
        return self.param(name, as_initializer(init), shape, self.param_dtype)
