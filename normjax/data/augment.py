"""Transforms on the host, each a pure function of images and uniform numbers.

An operation is `op(images, u, **settings) -> images` with images uint8 [B, H, W, C], C
1 or 3, and u float64 [B, k] in [0, 1); row b of the result depends on row b of both
alone. The operations that resize also take a list of images of different sizes.
`build` chains operations from a flat config dict; the pipeline draws the uniforms of a
batch from (seed, step, row), so an image's fate depends on neither hosts nor workers.

Example:
  >>> import numpy as np
  >>> from normjax.data import augment
  >>> transform = augment.build({"crop_padding": 2, "flip": True}, train=True)
  >>> images = np.zeros((4, 8, 8, 3), np.uint8)
  >>> transform(images, np.random.rand(4, transform.num_uniforms)).shape
  (4, 8, 8, 3)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from normjax.core.errors import UserError, one_of
from normjax.data import rand_augment as randaugment
from normjax.data.decode import Images, to_array, to_pil

__all__ = [
    "Fields",
    "Transform",
    "build",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "resize_center_crop",
]

FILLS: dict[str, Any] = {"zero": "constant", "reflect": "reflect"}
"""What random_crop pads with, and NumPy's name of it."""

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Of resizing; both with antialiasing."""

_ATTEMPTS = 10  # of random_resized_crop, as in Inception and torchvision


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a config may say about augmentation, with the values that mean "off".

    Attributes:
      image_size: side of the square that train and eval images become; 0 leaves sizes
        as they are (then all images of the set must share one).
      eval_resize: short side before the central crop of evaluation, such as 256 for
        image_size 224; 0 means image_size.
      interpolation: of resizing, a key of `INTERPOLATIONS`.
      resized_crop_min_scale: smallest area of random_resized_crop (0.08 is usual for
        ImageNet); 0 resizes and crops the centre in training, too.
      crop_padding: pixels of padding before a random crop of the same size.
      crop_fill: what is padded, "zero" or "reflect".
      flip: flip left and right with probability 1/2.
      rand_augment_ops: RandAugment operations per image (2 is usual).
      rand_augment_set: "paper", or "increasing", that of timm's recipes; see
        `normjax.data.rand_augment`.
      rand_augment_magnitude: their strength, 0 to 30.
      rand_augment_std: standard deviation of the strength, 0 to 30.

    Example:
      >>> from normjax.data import augment
      >>> augment.Fields(flip=True).crop_padding
      0
    """

    image_size: int = 0
    eval_resize: int = 0
    interpolation: str = "bicubic"
    resized_crop_min_scale: float = 0.0
    crop_padding: int = 0
    crop_fill: str = "zero"
    flip: bool = False
    rand_augment_ops: int = 0
    rand_augment_set: str = "paper"
    rand_augment_magnitude: float = 9
    rand_augment_std: float = 0.0


@dataclasses.dataclass(frozen=True)
class Transform:
    """A chain of operations.

    Attributes:
      ops: (operation, number of uniforms it takes) in order.
      image_size: side of the square output; 0 keeps the input's size.
      crop_padding: the padding in `ops`, which images must exceed.

    Example:
      >>> from normjax.data import augment
      >>> transform = augment.build({"image_size": 4, "flip": True}, train=True)
      >>> isinstance(transform, augment.Transform)
      True
      >>> transform.num_uniforms, transform.output_shape((8, 8, 3))
      (1, (4, 4, 3))
    """

    ops: tuple[tuple[Callable[[Images, np.ndarray], np.ndarray], int], ...]
    image_size: int = 0
    crop_padding: int = 0

    @property
    def num_uniforms(self) -> int:
        """k, the number of uniforms that one image takes."""
        return sum(count for _, count in self.ops)

    def __call__(self, images: Images, u: np.ndarray) -> np.ndarray:
        """images: B images, u: float64 [B, k] -> uint8 [B, H', W', C]."""
        start = 0
        for op, count in self.ops:
            images = op(images, u[:, start : start + count])
            start += count
        return np.asarray(images)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape [H', W', C] that an image of `shape` [H, W, C] becomes.

        Raises:
          UserError: images no larger than `crop_padding`.
        """
        size = self.image_size
        height, width = (size, size) if size else shape[:2]
        if self.crop_padding >= min(height, width):
            limit = f"must be less than the image side {min(height, width)}"
            raise UserError(f"augment.crop_padding={self.crop_padding} {limit}")
        return height, width, shape[2]


_REALS = {
    "resized_crop_min_scale": 1,
    "rand_augment_magnitude": 30,
    "rand_augment_std": 30,
}
"""Fields that are real numbers, and their largest values."""


def build(
    spec: Mapping, *, train: bool, mean: Sequence[float] = (0.5,)
) -> Transform | None:
    """The transform of a config, or None where it would change nothing.

    Args:
      spec: values of `Fields`; fields left out keep their defaults (off).
      train: False keeps only what evaluation needs: resize and central crop.
      mean: of the pixels scaled to 0..1; images are filled with it where they move.

    Raises:
      UserError: an unknown field or a value that is not allowed.

    Example:
      >>> from normjax.data import augment
      >>> augment.build({"crop_padding": 2, "flip": True}, train=True).num_uniforms
      3
      >>> print(augment.build({"crop_padding": 2, "flip": True}, train=False))
      None
    """
    f = _checked(spec)
    size, resize = f.image_size, (0 if train else f.eval_resize) or f.image_size
    given: dict[str, Any] = {"size": size, "interpolation": f.interpolation}
    ops: list = []
    if train and f.resized_crop_min_scale:
        scale = (f.resized_crop_min_scale, 1.0)
        crop = functools.partial(random_resized_crop, scale=scale, **given)
        ops.append((crop, 2 * _ATTEMPTS + 2))
    elif size:
        op = functools.partial(resize_center_crop, resize=resize, **given)
        ops.append((op, 0))
    if not train:
        return Transform(tuple(ops), size) if ops else None
    if f.crop_padding:
        crop = functools.partial(random_crop, padding=f.crop_padding, fill=f.crop_fill)
        ops.append((crop, 2))
    if f.flip:
        ops.append((random_flip, 1))
    if f.rand_augment_ops:
        count, std, kind = f.rand_augment_ops, f.rand_augment_std, f.rand_augment_set
        op = functools.partial(
            _each(randaugment.rand_augment),
            num_ops=count,
            magnitude=f.rand_augment_magnitude,
            std=std,
            ops=kind,
            fill=tuple(round(255 * value) for value in mean),
        )
        ops.append((op, randaugment.num_uniforms(count, kind, std)))
    return Transform(tuple(ops), size, f.crop_padding) if ops else None


def _checked(spec: Mapping) -> Fields:
    values = {**spec}
    defaults = dataclasses.asdict(Fields())
    for name, value in values.items():
        if name not in defaults:
            raise UserError(one_of("augment field", name, defaults))
        default = defaults[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, bool | str):
            good, need = isinstance(value, type(default)), type(default).__name__
        elif name in _REALS:
            top = _REALS[name]
            good, need = number and 0 <= value <= top, f"a number in 0..{top}"
        else:
            good, need = number and value >= 0 and value == int(value), "an int >= 0"
        if not good:
            raise UserError(f"augment.{name}={value!r} must be {need}")
    f = Fields(**values)
    if f.crop_fill not in FILLS:
        raise UserError(one_of("augment.crop_fill", f.crop_fill, FILLS))
    if f.interpolation not in INTERPOLATIONS:
        kinds = INTERPOLATIONS
        raise UserError(one_of("augment.interpolation", f.interpolation, kinds))
    if f.rand_augment_set not in randaugment.SETS:
        kinds = randaugment.SETS
        raise UserError(one_of("augment.rand_augment_set", f.rand_augment_set, kinds))
    if f.resized_crop_min_scale and not f.image_size:
        raise UserError("augment.resized_crop_min_scale needs augment.image_size")
    if f.eval_resize and not 0 < f.image_size <= f.eval_resize:
        rule = f"needs augment.image_size in 1..{f.eval_resize}, got {f.image_size}"
        raise UserError(f"augment.eval_resize={f.eval_resize} {rule}")
    return f


def _each(op: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Lift `op(image, u_row, **settings)` to batches; its results share one size."""

    @functools.wraps(op)
    def lifted(images: Images, u: np.ndarray, **settings) -> np.ndarray:
        pairs = zip(images, u, strict=True)
        return np.stack([op(image, row, **settings) for image, row in pairs])

    return lifted


def random_flip(images: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Flip left and right where u < 1/2.

    Args:
      images: uint8 [B, H, W, C].  u: [B, 1].

    Example:
      >>> import numpy as np
      >>> from normjax.data import augment
      >>> images = np.arange(3, dtype=np.uint8).reshape(1, 1, 3, 1)
      >>> print(augment.random_flip(images, np.array([[0.2]])).ravel())
      [2 1 0]
    """
    out = np.array(images, order="C")
    pixels = out.view(f"V{out.shape[-1]}")  # NumPy moves whole pixels faster
    flip = u[:, 0] < 0.5
    pixels[flip] = pixels[flip][:, :, ::-1]
    return out


def random_crop(
    images: np.ndarray, u: np.ndarray, *, padding: int, fill: str = "zero"
) -> np.ndarray:
    """Pad every side by `padding`, crop the original size anywhere in it.

    The augmentation of the CIFAR experiments in He et al. (2016).

    Args:
      images: uint8 [B, H, W, C].  u: [B, 2], for the vertical and horizontal offset.
      padding: in pixels.  fill: "zero", or "reflect", which does not repeat the edge.

    Example:
      >>> import numpy as np
      >>> from normjax.data import augment
      >>> images = np.array([1, 2, 3], np.uint8).reshape(1, 1, 3, 1)
      >>> moved = augment.random_crop(images, np.array([[0.5, 0.0]]), padding=1)
      >>> print(moved.ravel())  # the left end of 0 1 2 3 0
      [0 1 2]
    """
    _, height, width, _ = images.shape
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, around, mode=FILLS[fill])
    views = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
    top, left = (u.T * (2 * padding + 1)).astype(np.int64)
    crops = views[np.arange(len(images)), top, left]
    return np.moveaxis(crops, 1, -1)


@_each
def random_resized_crop(
    image: np.ndarray,
    u: np.ndarray,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Crop a random area and aspect ratio, resize it to [size, size, C].

    Inception's crop (Szegedy et al., 2015) in torchvision's form: area uniform in
    `scale` times the image's, ratio log-uniform in `ratio`, the first of ten attempts
    that fits, else the central crop with the nearest ratio allowed.

    Args:
      image: uint8 images [B, H, W, C], or a list of [H, W, C] of several sizes.
      u: [B, 22].  size: side of the result.  scale: smallest and largest area.
      ratio: smallest and largest ratio of width to height.
      interpolation: a key of `INTERPOLATIONS`.

    Example:
      >>> import numpy as np
      >>> from normjax.data import augment
      >>> images, u = np.zeros((2, 8, 6, 3), np.uint8), np.full((2, 22), 0.5)
      >>> augment.random_resized_crop(images, u, size=4).shape
      (2, 4, 4, 3)
    """
    height, width, _ = image.shape
    tries = u[: 2 * _ATTEMPTS].reshape(_ATTEMPTS, 2)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * tries[:, 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = np.exp(low + (high - low) * tries[:, 1])
    widths = np.rint(np.sqrt(areas * ratios)).astype(int)
    heights = np.rint(np.sqrt(areas / ratios)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        first = int(np.argmax(fits))
        w, h = int(widths[first]), int(heights[first])
        y = int(u[-2] * (height - h + 1))
        x = int(u[-1] * (width - w + 1))
    else:
        w = min(width, round(height * ratio[1]))
        h = min(height, round(width / ratio[0]))
        y, x = (height - h) // 2, (width - w) // 2
    box = (x, y, x + w, y + h)
    resample = INTERPOLATIONS[interpolation]
    return to_array(to_pil(image).crop(box).resize((size, size), resample))


@_each
def resize_center_crop(
    image: np.ndarray,
    u: np.ndarray,
    *,
    size: int,
    resize: int,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Resize the short side to `resize`, crop the centre to [size, size, C].

    Sizes are rounded as torchvision rounds them.

    Args:
      image: uint8 images [B, H, W, C], or a list of [H, W, C] of several sizes.
      u: [B, 0], for nothing is random.  size: side of the result.
      resize: short side before the crop.  interpolation: a key of `INTERPOLATIONS`.

    Example:
      >>> import numpy as np
      >>> from normjax.data import augment
      >>> images = [np.zeros((8, 6, 3), np.uint8), np.zeros((9, 20, 3), np.uint8)]
      >>> u = np.empty((2, 0))
      >>> augment.resize_center_crop(images, u, size=4, resize=5).shape
      (2, 4, 4, 3)
    """
    del u  # nothing random
    height, width, _ = image.shape
    if min(height, width) != resize:
        short = min(height, width)
        shape = (resize * width // short, resize * height // short)
        image = to_array(to_pil(image).resize(shape, INTERPOLATIONS[interpolation]))
    top = round((image.shape[0] - size) / 2)
    left = round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]
