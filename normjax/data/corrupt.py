"""Corruptions of images at five severities, so that there is something to adapt to.

Kinds and strengths are those of CIFAR-10-C for images up to 64 pixels a side and of
ImageNet-C above (Hendrycks & Dietterich, 2019); the randomness is ours.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from normjax.core.errors import UserError, one_of
from normjax.data.decode import to_array, to_pil

SMALL = 64  # pixels: the longest side that takes the strengths of CIFAR-10-C

STRENGTHS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
"""By kind: strengths of severity 1 to 5 for small images and for others."""


def corrupt(
    images: np.ndarray, u: np.ndarray, *, kind: str, severity: int
) -> np.ndarray:
    """Images with one corruption; each depends on its own row of u alone.

    gaussian_noise adds noise of that standard deviation to pixels in 0..1;
    gaussian_blur convolves with that standard deviation in pixels, edges repeated;
    contrast scales the difference to the mean of a channel; brightness adds to the
    value of HSV; jpeg writes and reads at that quality.

    Args:
      images: uint8 [B, H, W, C].  u: [B, 1] in [0, 1), seeds of the noise.
      kind: key of `STRENGTHS`.  severity: 1 to 5.

    Returns:
      uint8 [B, H, W, C].

    Raises:
      UserError: unknown kind, or a severity outside 1..5.
    """
    check_corruption(kind, severity)
    large = max(images.shape[1:3]) > SMALL
    strength = STRENGTHS[kind][large][severity - 1]
    rows = zip(images, u[:, 0], strict=True)
    return np.stack([_KINDS[kind](image, strength, float(x)) for image, x in rows])


def check_corruption(kind: str, severity: int) -> None:
    """Raise a UserError unless there is this corruption of this severity."""
    if kind not in STRENGTHS:
        raise UserError(one_of("corruption", kind, STRENGTHS))
    if severity not in range(1, 6):
        raise UserError(f"severity must lie in 1..5, got {severity}")


def _noise(image: np.ndarray, strength: float, u: float) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=int(u * 2**53)))
    return _rounded(image / 255 + strength * rng.standard_normal(image.shape))


def _blur(image: np.ndarray, strength: float, u: float) -> np.ndarray:
    del u
    radius = int(4 * strength + 0.5)
    window = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / strength))
    window /= window.sum()
    out = image / 255
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        views = np.lib.stride_tricks.sliding_window_view(
            np.pad(out, pad, mode="edge"), len(window), axis
        )
        out = views @ window
    return _rounded(out)


def _contrast(image: np.ndarray, strength: float, u: float) -> np.ndarray:
    del u
    pixels = image / 255
    mean = pixels.mean((0, 1), keepdims=True)
    return _rounded((pixels - mean) * strength + mean)


def _brightness(image: np.ndarray, strength: float, u: float) -> np.ndarray:
    del u
    pixels = image / 255
    value = pixels.max(-1, keepdims=True)
    # In HSV a larger value scales all channels; black becomes grey.
    wanted = np.clip(value + strength, 0, 1)
    scaled = pixels * (wanted / np.maximum(value, 1e-12))
    return _rounded(np.where(value > 0, scaled, wanted))


def _jpeg(image: np.ndarray, strength: float, u: float) -> np.ndarray:
    del u
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=int(strength))
    with Image.open(buffer) as written:
        return to_array(written)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


_KINDS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "gaussian_noise": _noise,
    "gaussian_blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "jpeg": _jpeg,
}
