"""Corruptions against their definitions."""

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data.corrupt import STRENGTHS, corrupt

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(40, 200, (3, 16, 12, 3), dtype=np.uint8)
U = RNG.uniform(size=(3, 1))


def run(images, kind, severity, u=U):
    return corrupt(images, u, kind=kind, severity=severity)


def test_noise_has_its_strength_and_depends_on_its_row_alone():
    flat = np.full((2, 64, 64, 3), 128, np.uint8)
    out = run(flat, "gaussian_noise", 5, U[:2])
    assert abs((out / 255).std() - 0.10) < 0.005
    assert abs((out / 255).mean() - 128 / 255) < 0.005
    assert (out[0] != out[1]).any()
    np.testing.assert_array_equal(run(flat[1:], "gaussian_noise", 5, U[1:2]), out[1:])


def test_blur_spreads_a_point_as_a_gaussian():
    point = np.zeros((1, 15, 15, 1), np.uint8)
    point[0, 7, 7] = 255
    got = run(point, "gaussian_blur", 5, U[:1])[0, :, :, 0] / 255
    window = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    window /= window.sum()
    expected = np.zeros((15, 15))
    expected[3:12, 3:12] = np.outer(window, window)
    np.testing.assert_allclose(got, expected, atol=0.5 / 255 + 1e-9)


def test_contrast_keeps_the_mean_and_scales_the_spread():
    out = run(IMAGES, "contrast", 3) / 255
    x = IMAGES / 255
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(out, mean + 0.4 * (x - mean), atol=0.5 / 255 + 1e-9)


def test_brightness_moves_the_value_and_keeps_the_hue():
    image = np.array([[[[100, 50, 0], [0, 0, 0], [250, 10, 10]]]], np.uint8)
    out = run(image, "brightness", 5, U[:1])[0, 0]
    wanted = 100 + 0.3 * 255
    np.testing.assert_allclose(out[0], [wanted, wanted / 2, 0], atol=1)
    np.testing.assert_allclose(out[1], 0.3 * 255, atol=1)
    np.testing.assert_allclose(out[2], [255, 10.2, 10.2], atol=1)


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_severities_grow(kind, channels):
    smooth = np.linspace(60, 190, 32 * 32).reshape(1, 32, 32, 1)
    wave = 25 * np.sin(np.arange(32))[None, :, None, None]
    image = np.repeat(smooth + wave, channels, -1).astype(np.uint8)
    outs = [run(image, kind, severity, U[:1]) for severity in range(1, 6)]
    assert all(out.dtype == np.uint8 and out.shape == image.shape for out in outs)
    errors = [np.abs(out.astype(float) - image).mean() for out in outs]
    assert errors == sorted(errors) and errors[0] > 0


def test_large_images_take_the_strengths_of_imagenet():
    flat = np.full((1, 80, 80, 3), 128, np.uint8)
    assert abs((run(flat, "gaussian_noise", 2, U[:1]) / 255).std() - 0.12) < 0.005


def test_refusals():
    with pytest.raises(UserError, match="did you mean 'contrast'"):
        run(IMAGES, "contras", 1)
    with pytest.raises(UserError, match=r"severity must lie in 1\.\.5, got 6"):
        run(IMAGES, "contrast", 6)
