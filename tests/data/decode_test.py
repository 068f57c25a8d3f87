"""Encoded images of all kinds to arrays."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from normjax.data.decode import Undecodable, decode, eight_bits, verify

RAMP = np.add.outer(np.arange(20) * 5, np.arange(32) * 4).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture():
    return Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1))


KINDS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "PPM", "JPEG2000", "TGA")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    data = encoded(picture(), kind)
    array, found = decode(data, 3), verify(data)
    assert array.shape == (20, 32, 3) and (found.height, found.width) == (20, 32)
    near = np.abs(array.astype(int) - np.asarray(picture())).mean()
    assert near < (20 if kind == "GIF" else 4)  # 256 colours


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "YCbCr", "RGBX"])
def test_modes_become_rgb(mode):
    gray = Image.fromarray(RAMP).convert("RGB").convert(mode)
    array = decode(encoded(gray, "TIFF"), 3)
    assert array.shape == (20, 32, 3)
    assert np.abs(array.astype(int) - RAMP[..., None]).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x[::-1].swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: x[:, ::-1].swapaxes(0, 1)),
        (0, lambda x: x),
        (9, lambda x: x),
    ],
)
def test_photos_are_turned_upright(kind, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), kind, exif=exif)
    plain = decode(encoded(picture(), kind), 3)
    array, found = decode(data, 3), verify(data)
    np.testing.assert_array_equal(array, upright(plain))
    assert (found.height, found.width) == array.shape[:2]


def test_a_broken_note_on_an_image_breaks_no_image():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0garbage")
    assert decode(data, 3).shape == (20, 32, 3)


@pytest.mark.parametrize(
    ("dtype", "top", "fills"),
    [
        ("u2", 65535, "16 bits"),
        ("u2", 4095, "12 bits"),
        ("u2", 1000, "12 bits"),
        ("u2", 255, "8 bits"),
        ("i4", 65535, "16 bits"),
        ("i4", 200, "8 bits"),
        ("f4", 1, "0 to 1"),
        ("f4", 255, "0 to 255"),
    ],
)
def test_deep_gray_keeps_its_contrast(dtype, top, fills):
    values = (np.linspace(0, 1, 64 * 64).reshape(64, 64) * top).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF")
    array, found = decode(data, 1)[..., 0], verify(data)
    assert found.gray and found.fills == fills
    full = {"16 bits": 65535, "12 bits": 4095, "8 bits": 255}.get(fills, top)
    exact = values.astype(np.float64) * (255 / full)
    assert np.abs(array - exact).max() <= (0.5 if dtype == "f4" else 1)
    np.testing.assert_array_equal(decode(data, 3), np.stack([array] * 3, -1))


@pytest.mark.parametrize(
    "values", [[-1, 5], [0, 70_000], [0.0, 300.0], [-0.5, 0.5], [0.0, np.nan]]
)
def test_values_of_no_known_range_are_refused(values):
    with pytest.raises(Undecodable, match="its values go from"):
        eight_bits(np.array([values]))


def test_black_is_black_in_every_range():
    array, fills = eight_bits(np.zeros((2, 3), np.float32))
    assert fills == "" and array.dtype == np.uint8 and not array.any()


def test_what_cannot_be_decoded_says_why():
    data = encoded(picture(), "JPEG")
    for cut, why in ((0, "empty"), (1, "no image"), (len(data) // 2, "runcated")):
        for read in (verify, lambda x: decode(x, 3)):
            with pytest.raises(Undecodable, match=why):
                read(data[:cut])


def test_absurdly_large_images(monkeypatch):
    data = encoded(picture())  # of 640 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(Undecodable, match="exceeds limit"):
        verify(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, 3).shape == (20, 32, 3)
