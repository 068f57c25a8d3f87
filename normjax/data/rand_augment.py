"""RandAugment (Cubuk et al., "RandAugment: Practical automated data augmentation with
a reduced search space", 2020), with two sets of operations.

Each grows in the magnitude M = 0..30: s = M / 30, with a random sign.

"paper" has the paper's 14 operations, each of which is applied:

    identity; autocontrast; equalize         no magnitude
    rotate                                   +- 30 s degrees
    shear x, shear y                         +- 0.3 s
    translate x, translate y                 +- 0.45 s of the side
    color, contrast, brightness, sharpness   factor 1 +- 0.9 s
    solarize                                 inverts values >= 256 (1 - s)
    posterize                                keeps 8 - round(4 s) bits

Geometry is bilinear and fills with gray 128, as in the authors' code. At M = 0 every
operation but autocontrast and equalize is the identity; color is, too, on gray images.

"increasing" is that of the recipes that timm trains with: "rand-m9-mstd0.5-inc1" is
M = 27, its deviation 1.5. 15 operations, each applied with probability 1/2; instead of
identity there are

    invert                                   no magnitude
    solarize add                             adds min(128, int(110 s)) to values < 128

posterize keeps 4 - int(4 s) bits, solarize inverts values >= 256 - int(256 s), factors
are at least 0.1; geometry is bicubic and fills with the mean of the pixels.
"""

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from normjax.data.decode import to_array, to_pil

Fill = tuple[int, ...]


def _affine(
    image: Image.Image,
    matrix: tuple[float, ...],
    resample: Image.Resampling = Image.Resampling.BILINEAR,
    fill: Fill = (128, 128, 128),
) -> Image.Image:
    """Output pixel (x, y) is input (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=resample,
        fillcolor=round(sum(fill) / len(fill)) if image.mode == "L" else fill,
    )


def _rotate(image, s, **how):
    angle, (width, height) = math.radians(30 * s), image.size
    cos, sin, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    shift = (x - cos * x - sin * y, y + sin * x - cos * y)  # the centre stays
    return _affine(image, (cos, sin, shift[0], -sin, cos, shift[1]), **how)


def _shear_x(image, s, **how):
    return _affine(image, (1, 0.3 * s, 0, 0, 1, 0), **how)


def _shear_y(image, s, **how):
    return _affine(image, (1, 0, 0, 0.3 * s, 1, 0), **how)


def _translate_x(image, s, **how):
    return _affine(image, (1, 0, 0.45 * s * image.size[0], 0, 1, 0), **how)


def _translate_y(image, s, **how):
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * s * image.size[1]), **how)


def _posterize(image, s):
    return ImageOps.posterize(image, 8 - round(4 * abs(s)))


def _enhance(enhancer, least=0.0):
    return lambda image, s: enhancer(image).enhance(max(least, 1 + 0.9 * s))


def _solarize_add(image, s):
    added = min(128, int(110 * abs(s)))
    table = [value + added if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _keep_bits(image, s):
    mask = 0xFF00 >> (4 - int(4 * abs(s))) & 0xFF  # PIL keeps at least one bit
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


Op = Callable[[Image.Image, float], Image.Image]

_GEOMETRY: dict[str, Callable[..., Image.Image]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_ENHANCERS: dict[str, Any] = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
_PLAIN: dict[str, Op] = {
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}

OPS: dict[str, Op] = {
    "identity": lambda image, s: image,
    **_PLAIN,
    **_GEOMETRY,
    **{name: _enhance(enhancer) for name, enhancer in _ENHANCERS.items()},
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - abs(s)))),
    "posterize": _posterize,
}
"""name -> op(PIL image L or RGB, s in [-1, 1]) -> PIL image of the same size."""


@functools.cache
def increasing_ops(fill: Fill) -> dict[str, Op]:
    """As `OPS`, of the set "increasing"; `fill`: one value 0..255, or one a channel."""
    how = {"resample": Image.Resampling.BICUBIC, "fill": fill * (3 // len(fill))}
    return {
        **_PLAIN,
        "invert": lambda image, s: ImageOps.invert(image),
        **{k: functools.partial(op, **how) for k, op in _GEOMETRY.items()},
        **{name: _enhance(enhancer, 0.1) for name, enhancer in _ENHANCERS.items()},
        "solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * abs(s))),
        "solarize_add": _solarize_add,
        "posterize": _keep_bits,
    }


class OpSet(NamedTuple):
    """A set of operations.

    Attributes:
      ops: function of the fill to a table like `OPS`.
      probability: with which an operation that was drawn is applied.
    """

    ops: Callable[[Fill], Mapping[str, Op]]
    probability: float


SETS = {"paper": OpSet(lambda fill: OPS, 1.0), "increasing": OpSet(increasing_ops, 0.5)}


def num_uniforms(num_ops: int, ops: str, std: float) -> int:
    """Of one image."""
    return num_ops * (2 + (SETS[ops].probability < 1) + (std > 0))


def rand_augment(
    image: np.ndarray,
    u: np.ndarray,
    *,
    num_ops: int,
    magnitude: float,
    std: float = 0.0,
    ops: str = "paper",
    fill: Fill = (128, 128, 128),
) -> np.ndarray:
    """Apply `num_ops` operations, each drawn uniformly from a set, with replacement.

    Args:
      image: uint8 [H, W, C], C 1 or 3.
      u: float64 [num_uniforms(...)]: for each operation, which one, its sign, whether
        it is applied and how far the magnitude is from M, the last two where they vary.
      num_ops: N of the paper.  magnitude: M of the paper, 0..30.
      std: deviation of a normal magnitude around M, which is cut at 0 and 30.
      ops: key of `SETS`.  fill: of "increasing", see there.

    Returns:
      uint8 [H, W, C].
    """
    chosen = SETS[ops]
    table, picture = tuple(chosen.ops(fill).values()), to_pil(image)
    for which, sign, *more in u.reshape(num_ops, -1):
        if chosen.probability < 1 and more.pop(0) >= chosen.probability:
            continue
        s = magnitude / 30
        if std:
            away = statistics.NormalDist().inv_cdf(max(more.pop(0), 2.0**-54))
            s = min(max(magnitude + std * away, 0.0), 30.0) / 30
        picture = table[int(which * len(table))](picture, s if sign < 0.5 else -s)
    return to_array(picture)
