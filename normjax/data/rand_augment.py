"""RandAugment (Cubuk et al., "RandAugment: Practical automated data augmentation with
a reduced search space", 2020).

The paper's 14 operations, each growing linearly in the magnitude M = 0..30 (as in
torchvision, and in the sense of timm's "increasing" set: more is stronger; timm's m9
of 10 is M = 27). With s = M / 30 and a random sign:

    identity; autocontrast; equalize         no magnitude
    rotate                                   +- 30 s degrees
    shear x, shear y                         +- 0.3 s
    translate x, translate y                 +- 0.45 s of the side
    color, contrast, brightness, sharpness   factor 1 +- 0.9 s
    solarize                                 inverts values >= 256 (1 - s)
    posterize                                keeps 8 - round(4 s) bits

Geometry is bilinear and fills with gray 128, as in the authors' code. At M = 0 every
operation but autocontrast and equalize is the identity; color is, too, on gray images.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from normjax.data.decode import to_array, to_pil


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Output pixel (x, y) is input (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=128 if image.mode == "L" else (128, 128, 128),
    )


def _rotate(image, s):
    angle, (width, height) = math.radians(30 * s), image.size
    cos, sin, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    shift = (x - cos * x - sin * y, y + sin * x - cos * y)  # the centre stays
    return _affine(image, (cos, sin, shift[0], -sin, cos, shift[1]))


def _posterize(image, s):
    return ImageOps.posterize(image, 8 - round(4 * abs(s)))


def _enhance(enhancer):
    return lambda image, s: enhancer(image).enhance(1 + 0.9 * s)


OPS = {
    "identity": lambda image, s: image,
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "rotate": _rotate,
    "shear_x": lambda image, s: _affine(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: _affine(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: _affine(
        image, (1, 0, 0.45 * s * image.size[0], 0, 1, 0)
    ),
    "translate_y": lambda image, s: _affine(
        image, (1, 0, 0, 0, 1, 0.45 * s * image.size[1])
    ),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - abs(s)))),
    "posterize": _posterize,
}
"""name -> op(PIL image L or RGB, s in [-1, 1]) -> PIL image of the same size."""

_OPS = tuple(OPS.values())


def rand_augment(
    image: np.ndarray, u: np.ndarray, *, num_ops: int, magnitude: float
) -> np.ndarray:
    """Apply `num_ops` operations, each drawn uniformly from the 14, with replacement.

    Args:
      image: uint8 [H, W, C], C 1 or 3.
      u: float64 [2 * num_ops]: for each operation, which one and its sign.
      num_ops: N of the paper.  magnitude: M of the paper, 0..30.

    Returns:
      uint8 [H, W, C].
    """
    picture = to_pil(image)
    for which, sign in u.reshape(num_ops, 2):
        s = magnitude / 30 if sign < 0.5 else -magnitude / 30
        picture = _OPS[int(which * len(_OPS))](picture, s)
    return to_array(picture)
