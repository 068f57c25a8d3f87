"""Random erasing on the device: boxes of images become noise. Pure and jittable."""

import math

import jax
import jax.numpy as jnp

AREAS = 0.02, 1 / 3
"""Smallest and largest part of an image that is erased."""

LEAST_RATIO = 0.3
"""Of height to width; the largest is 1 over it."""

_ATTEMPTS = 10


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing (Zhong et al., 2020), with normal noise for every pixel.

    As timm's mode "pixel": of the area uniform in AREAS times the image's, the ratio
    log-uniform in LEAST_RATIO .. 1 / LEAST_RATIO, the first of ten boxes that is
    smaller than the image, anywhere in it.

    Args:
      key: random key.  images: float [B, H, W, C], normalised.
      probability: of each image; a Python number, 0 returns the input.

    Returns:
      [B, H, W, C] in the input's dtype. Image b depends on (key, b) alone.
    """
    if not probability:
        return images
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(images)))
    return jax.vmap(_erase_one, (0, 0, None))(keys, images, probability)


def _erase_one(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    height, width, _ = image.shape
    key_box, key_place, key_noise = jax.random.split(key, 3)
    areas, ratios = jax.random.uniform(key_box, (2, _ATTEMPTS))
    areas = height * width * (AREAS[0] + (AREAS[1] - AREAS[0]) * areas)
    ratios = jnp.exp(math.log(LEAST_RATIO) * (1 - 2 * ratios))
    rows = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    erased, y, x = jax.random.uniform(key_place, (3,))
    inside_rows = _interval(height, rows[first], y)
    inside = inside_rows[:, None] & _interval(width, columns[first], x)[None]
    inside &= (erased < probability) & jnp.any(fits)
    noise = jax.random.normal(key_noise, image.shape).astype(image.dtype)
    return jnp.where(inside[..., None], noise, image)


def _interval(n: int, length: jax.Array, u: jax.Array) -> jax.Array:
    """bool [n]: `length` positions, each place for them as likely; u is in [0, 1)."""
    start = jnp.floor(u * (n - length + 1)).astype(jnp.int32)
    position = jnp.arange(n)
    return (position >= start) & (position < start + length)
