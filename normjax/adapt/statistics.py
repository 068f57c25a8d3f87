"""Batch normalization with statistics that follow the test data."""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.moments import at_least_float32, masked_moments


def _normalize(x, mean, var, scale, bias, epsilon):
    y = (at_least_float32(x) - mean) * jax.lax.rsqrt(var + epsilon)
    wide = (1,) * (x.ndim - 1) + (-1,)
    return y * scale.reshape(wide) + bias.reshape(wide)


def alpha_batch_normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    batch_weight: float = 0.1,
    unbiased: bool = True,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Alpha-BN: (1 - w) source + w batch statistics (You, Li & Zhao, 2021).

    m = (1 - w) mean + w mean_batch, v likewise, and (x - m) / sqrt(v + epsilon) scale +
    bias; m and v are constants of the gradient. The paper's alpha is 1 - w.

    Args:
      x: [..., C].  mean, var: [C], of the source.  scale, bias: [C].
      batch_weight: w; 1 is test-time BN, 0 the source model.
      unbiased: the batch variance is over n - 1, as in the released code.
      epsilon: added to the variance.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> x = jnp.array([[8.0], [12.0]])  # mean 10; the source's is 0
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> y = adapt.alpha_batch_normalize(
      ...     x, zero, one, one, zero, batch_weight=1.0, unbiased=False, epsilon=0.0
      ... )
      >>> print(y.ravel().round(3))
      [-1.  1.]
    """
    statistics = alpha_statistics(
        x, mean, var, batch_weight=batch_weight, unbiased=unbiased
    )
    return _normalize(x, *statistics, scale, bias, epsilon)


def alpha_statistics(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    batch_weight: float = 0.1,
    unbiased: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """m and v of `alpha_batch_normalize`, [1, ..., 1, C]; arguments as there."""
    own_mean, own_var, count = masked_moments(x, range(x.ndim - 1))
    if unbiased:
        own_var = own_var * count / jnp.maximum(count - 1, 1)
    own_mean, own_var = jax.lax.stop_gradient((own_mean, own_var))
    mean = (1 - batch_weight) * mean.reshape(own_mean.shape) + batch_weight * own_mean
    var = (1 - batch_weight) * var.reshape(own_var.shape) + batch_weight * own_var
    return mean, var


def split_components(
    key: jax.Array, mean: jax.Array, var: jax.Array, components: int = 16
) -> tuple[jax.Array, jax.Array]:
    """Means and variances [K, C] of the components that UnMix-TNS starts with.

    means = mean + sqrt(K / (2 (K - 1)) var) N(0, 1), vars = var / 2; for K = 1 those of
    the source.

    Args:
      key: of jax.random.  mean, var: [C], of the source.  components: K.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> means, variances = adapt.split_components(
      ...     jax.random.key(0), jnp.zeros(3), jnp.full(3, 4.0), components=8
      ... )
      >>> means.shape, float(variances[0, 0])
      ((8, 3), 2.0)
    """
    shape = (components, len(mean))
    if components == 1:
        return mean.reshape(shape), var.reshape(shape)
    spread = jnp.sqrt(0.5 * components / (components - 1) * var)
    noise = jax.random.normal(key, shape, mean.dtype)
    means = mean.reshape(1, -1) + spread.reshape(1, -1) * noise
    return means, jnp.broadcast_to(0.5 * var, shape)


def unmix_normalize(
    x: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    momentum: float,
    temperature: float = 0.07,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """UnMix-TNS: statistics of K components instead of the batch (Tomar et al., 2024).

    With mean m_i and biased variance v_i of one example over its positions and
    p_ik = softmax_k(cos(m_i, means_k) / temperature), a constant of the gradient:

        M_ik = (1 - p_ik) means_k + p_ik m_i       V_ik likewise
        m = mean_ik(M),  v = mean_ik(V) + mean_ik(M^2) - m^2  per example, over k
        means_k   <- means_k + momentum mean_i(p_ik (m_i - means_k))
        vars_k    <- vars_k + momentum mean_i(p_ik (v_i - vars_k))

    Args:
      x: [B, ..., C].  means, variances: [K, C].  scale, bias: [C].
      momentum: 1 - 0.9^(batch size / 64) in the paper.
      temperature: of the softmax over the components.  epsilon: added to v.

    Returns:
      (y [B, ..., C] in at least float32, (means, variances) after this batch).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> one, zero = jnp.ones(3), jnp.zeros(3)
      >>> key = jax.random.key(1)
      >>> components = adapt.split_components(key, zero, one, components=4)
      >>> y, components = jax.jit(adapt.unmix_normalize)(
      ...     x, *components, scale=one, bias=zero, momentum=0.01
      ... )
      >>> y.shape, components[0].shape
      ((4, 8, 8, 3), (4, 3))
    """
    statistics, components = unmix_statistics(
        x, means, variances, momentum=momentum, temperature=temperature
    )
    return _normalize(x, *statistics, scale, bias, epsilon), components


def unmix_statistics(
    x: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    *,
    momentum: float,
    temperature: float = 0.07,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """What `unmix_normalize` normalises by; arguments as there.

    Returns:
      ((m, v) [B, 1, ..., 1, C], (means, variances) after this batch).
    """
    own_mean, own_var, _ = masked_moments(x, range(1, x.ndim - 1))
    own_mean, own_var = (t.reshape(len(x), 1, -1) for t in (own_mean, own_var))
    cosine = einsum("bc,kc->bk", _unit(own_mean[:, 0]), _unit(means))
    share = jax.lax.stop_gradient(jax.nn.softmax(cosine / temperature, -1))[..., None]
    mixed_mean = means[None] + share * (own_mean - means[None])
    mixed_var = variances[None] + share * (own_var - variances[None])
    mean = jnp.mean(mixed_mean, 1)
    spread = jnp.mean(jnp.square(mixed_mean - mean[:, None]), 1)
    var = jnp.mean(mixed_var, 1) + spread
    shape = (len(x), *(1,) * (x.ndim - 2), -1)
    means = means + momentum * jnp.mean(mixed_mean - means[None], 0)
    variances = variances + momentum * jnp.mean(mixed_var - variances[None], 0)
    statistics = mean.reshape(shape), var.reshape(shape)
    return statistics, jax.lax.stop_gradient((means, variances))


def _unit(rows: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.maximum(norm, 1e-12)
