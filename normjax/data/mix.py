"""Mixing of examples on the device: mixup, CutMix, soft targets. Pure and jittable.

The partner of an example is its neighbour in the batch (row 2i and row 2i + 1), and one
lambda serves the whole batch, as in timm's default mode. (timm pairs row i with row
B-1-i, which would send every image to another device; batches are shuffled, so that
neighbours are as random.) A strength of 0 is off.
"""

import jax
import jax.numpy as jnp


def one_hot_smooth(labels: jax.Array, num_classes: int, smoothing: float = 0.0):
    """Targets of label smoothing (Szegedy et al., 2016).

    Args:
      labels: int [...].  num_classes: K.  smoothing: mass spread over all K classes.

    Returns:
      float32 [..., K]: (1 - smoothing) * one_hot + smoothing / K.
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + (
        smoothing / num_classes
    )


def partners(x: jax.Array) -> jax.Array:
    """x [B, ...] with rows 2i and 2i + 1 exchanged; an odd last row stays."""
    even = len(x) // 2 * 2
    pairs = x[:even].reshape(even // 2, 2, *x.shape[1:])
    swapped = pairs[:, ::-1].reshape(even, *x.shape[1:])
    return jnp.concatenate([swapped, x[even:]]) if even < len(x) else swapped


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float):
    """Convex combinations of pairs of examples (Zhang et al., "mixup", 2018).

    Args:
      key: random key.  images: float [B, H, W, C].  targets: float [B, K].
      alpha: lambda is Beta(alpha, alpha); a Python number, 0 returns the input.

    Returns:
      lam * (images, targets) + (1 - lam) * their partners, in the input's dtypes.
    """
    if not alpha:
        return images, targets
    lam = _beta(key, alpha)
    return _blend(images, lam), _blend(targets, lam)


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float):
    """Paste a box of the partner into each image (Yun et al., "CutMix", 2019).

    The box has sides sqrt(1 - lam) of the image's and a uniform centre, and is clipped
    at the edges; targets are weighed by the area that is left after clipping.

    Args:
      key: random key.  images: float [B, H, W, C].  targets: float [B, K].
      alpha: lambda is Beta(alpha, alpha); a Python number, 0 returns the input.

    Returns:
      Mixed images and targets, in the input's dtypes.
    """
    if not alpha:
        return images, targets
    key_lam, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _beta(key_lam, alpha))
    rows = _interval(key_y, images.shape[1], side)
    cols = _interval(key_x, images.shape[2], side)
    inside = rows[:, None] & cols[None, :]
    area = jnp.mean(inside, dtype=jnp.float32)
    images = jnp.where(inside[None, :, :, None], partners(images), images)
    return images, _blend(targets, 1 - area)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch_prob: float = 0.5,
):
    """Mixup or CutMix, one of them for the whole batch, as timm does.

    Args:
      key: random key.  images: float [B, H, W, C].  targets: float [B, K].
      mixup_alpha, cutmix_alpha: their strengths, 0 is off.
      switch_prob: probability of CutMix where both are on.

    Returns:
      Mixed images and targets, in the input's dtypes.
    """
    if not (mixup_alpha and cutmix_alpha):
        images, targets = mixup(key, images, targets, mixup_alpha)
        return cutmix(key, images, targets, cutmix_alpha)
    key_switch, key = jax.random.split(key)
    return jax.lax.cond(
        jax.random.uniform(key_switch) < switch_prob,
        lambda: cutmix(key, images, targets, cutmix_alpha),
        lambda: mixup(key, images, targets, mixup_alpha),
    )


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """A draw of Beta(alpha, alpha), from logarithms of gammas: small ones underflow."""
    first, second = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(first - second)


def _blend(x: jax.Array, lam: jax.Array) -> jax.Array:
    mixed = lam * x.astype(jnp.float32) + (1 - lam) * partners(x).astype(jnp.float32)
    return mixed.astype(x.dtype)


def _interval(key: jax.Array, n: int, side: jax.Array) -> jax.Array:
    """bool [n]: `int(n * side)` positions around a uniform centre, clipped to 0..n."""
    length = (n * side).astype(jnp.int32)
    start = jax.random.randint(key, (), 0, n) - length // 2
    position = jnp.arange(n)
    # timm clips centre - length // 2 and centre + length // 2: even lengths only
    return (position >= start) & (position < start + length // 2 * 2)
