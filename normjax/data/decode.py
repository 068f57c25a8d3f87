"""Encoded images to arrays, with PIL."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

Images = np.ndarray | Sequence[np.ndarray]
"""uint8 [B, H, W, C], or B images uint8 [H, W, C] of different sizes."""

# Images of 90 to 180 million pixels are read like others; larger ones raise.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Undecodable(ValueError):
    """An image that is truncated, damaged, foreign or absurdly large.

    The message says why, in words that are the same every time.
    """


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify` finds.

    Attributes:
      height, width: upright.  gray: whether one channel holds all of the image.
      fills: the range that values of more than eight bits fill, see `eight_bits`.
    """

    height: int
    width: int
    gray: bool
    fills: str


def to_array(image: Image.Image) -> np.ndarray:
    """A PIL image of mode L or RGB as uint8 [H, W, 1] or [H, W, 3]."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def to_pil(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1] or [H, W, 3] as a PIL image of mode L or RGB."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decode an image file of any PIL format: uint8 [H, W, channels].

    The first image of several; upright, as its EXIF orientation says. Palettes and CMYK
    become RGB, alpha is dropped, deeper gray keeps its contrast (see `eight_bits`).

    Args:
      encoded: the file's bytes.  channels: 1 (converted to gray) or 3 (to RGB).

    Raises:
      Undecodable: PIL cannot decode it.
    """
    return decode_with_range(encoded, channels)[0]


def decode_with_range(encoded: bytes, channels: int) -> tuple[np.ndarray, str]:
    """`decode`, and the range that values of more than eight bits fill, or ""."""
    with _opened(encoded) as image:
        image.load()
        turn = _turn(image)
        flat, fills = _converted(image, channels)
        return to_array(flat if turn is None else flat.transpose(turn)), fills


class OneRange:
    """Refuses gray of more than eight bits that fills another range than that before
    it: what is white in one image is not in the other. Threads may share it."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, str]] = {}

    def check(self, fills: str, name: str) -> None:
        """Take note of an image.

        Args:
          fills: its range in words, "" for images of eight bits.

        Raises:
          Undecodable: another range than that of those before.
        """
        if not fills:
            return
        # `setdefault`: of two threads one alone is the first.
        kept, first = self._kept.setdefault("first", (fills, name))
        if kept != fills:
            raise Undecodable(
                f"its values fill {fills}, those of {first!r} {kept}: what is white in "
                "one is not in the other"
            )


def verify(encoded: bytes) -> Verified:
    """Read an image to its end.

    JPEGs are decoded at an eighth of their size, which reads every byte all the same
    and so finds truncated files at a fraction of the cost.

    Raises:
      Undecodable: PIL cannot decode it.
    """
    with _opened(encoded) as image:
        width, height = image.size
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        gray = image.mode in ("1", "L", "F") or image.mode.startswith("I")
        turn = _turn(image)
        if turn in _SIDEWAYS:
            width, height = height, width
        fills = "" if image.mode in ("L", "RGB") else _converted(image, 3)[1]
        return Verified(height, width, gray, fills)


def eight_bits(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Gray values of more than eight bits as uint8, and the range they fill.

    Files do not say what white is. Integers are taken to have 8, 12 or 16 bits, the
    first that hold the largest, and keep the upper eight; floats to lie in 0..1 if they
    do, else in 0..255, and are rounded.

    Args:
      values: [H, W], of integers or floats.

    Returns:
      uint8 [H, W], and the range in words, or "" where all is 0.

    Raises:
      Undecodable: values that lie in none of these ranges.
    """
    low, high = values.min(), values.max()
    if low == high == 0:
        return np.zeros(values.shape, np.uint8), ""
    if values.dtype.kind == "f":
        for top in (1, 255):
            if low >= 0 and high <= top:
                scaled = np.rint(values * np.float64(255 / top))
                return scaled.astype(np.uint8), f"0 to {top}"
    elif low >= 0:
        for bits in (8, 12, 16):
            if high < 2**bits:
                return (values >> (bits - 8)).astype(np.uint8), f"{bits} bits"
    raise Undecodable(
        f"its values go from {low:g} to {high:g}; integers of 0 to 65535, or floats of "
        "0 to 1 or 0 to 255, keep their contrast"
    )


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    if not encoded:
        raise Undecodable("an empty file")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            yield image
    except Undecodable:
        raise
    except MemoryError:
        raise Undecodable("more pixels than the memory holds") from None
    except UnidentifiedImageError:
        raise Undecodable("no image, or of a kind that Pillow cannot read") from None
    except Exception as error:  # damaged files raise whatever a decoder stumbles over
        text = " ".join(str(error).split()) or type(error).__name__
        raise Undecodable(text) from error


def _converted(image: Image.Image, channels: int) -> tuple[Image.Image, str]:
    """In mode L or RGB, and the range that its values fill."""
    fills = ""
    if image.mode == "F" or image.mode.startswith("I"):
        array, fills = eight_bits(np.asarray(image))
        image = Image.fromarray(array)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns on the direct way to RGB
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode), fills


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

_SIDEWAYS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Of an image that is loaded: PIL turns TIFFs itself by then."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the image itself may be sound
        return None
