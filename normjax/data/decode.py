"""Encoded images to arrays, with PIL."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

Images = np.ndarray | Sequence[np.ndarray]
"""uint8 [B, H, W, C], or B images uint8 [H, W, C] of different sizes."""


def to_array(image: Image.Image) -> np.ndarray:
    """A PIL image of mode L or RGB as uint8 [H, W, 1] or [H, W, 3]."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def to_pil(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1] or [H, W, 3] as a PIL image of mode L or RGB."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def is_gray(image: Image.Image) -> bool:
    """Whether one channel holds all of the image (from its header alone)."""
    return image.mode in ("1", "L") or image.mode.startswith("I;16")


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decode an image file of any PIL format: uint8 [H, W, channels].

    Palettes and CMYK become RGB, alpha is dropped, 16-bit gray keeps its high byte;
    EXIF rotation is not applied, as in most published training code.

    Args:
      encoded: the file's bytes.  channels: 1 (converted to gray) or 3 (to RGB).

    Raises:
      OSError, ValueError, SyntaxError: PIL cannot decode it (see `UNREADABLE`).
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # PIL warns on the direct way to RGB
        mode = "L" if channels == 1 else "RGB"
        return to_array(image if image.mode == mode else image.convert(mode))


def verify(encoded: bytes) -> tuple[int, int, bool]:
    """Read an image to its end: (height, width, is gray).

    JPEGs are decoded at an eighth of their size, which reads every byte all the same
    and so finds truncated files at a fraction of the cost.

    Raises:
      OSError, ValueError, SyntaxError: PIL cannot decode it (see `UNREADABLE`).
    """
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        return height, width, is_gray(image)


def reason(error: Exception) -> str:
    """Why an image is unreadable, in words that are the same every time."""
    return "no image" if isinstance(error, UnidentifiedImageError) else str(error)


UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises on truncated, damaged, foreign or absurdly large files."""
