"""Tables and kernels of another size, against Pillow, SciPy and least squares."""

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import brentq

from normjax.transfer import resample
from normjax.transfer.rules import Misfit, Views, fit


def pillow(plane, size):
    """A map [H, W] resized by Pillow, bicubic."""
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("old", [(14, 14), (7, 9), (5, 3)])
@pytest.mark.parametrize("new", [(24, 24), (10, 6), (3, 16)])
def test_grids_are_resized_as_pillow_does(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 3))
    ours = resample.resize_grid(grid, new)
    assert ours.dtype == np.float32
    for channel in range(3):
        expected = pillow(grid[..., channel], new)
        np.testing.assert_allclose(ours[..., channel], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["absolute_position_bias", "offset_bias"])
def test_biases_by_distance_are_resized_as_pillow_does(name):
    """TinyViT's and FcaFormer's, which files keep flat."""
    table = np.random.default_rng(0).normal(size=(7, 7, 2)).astype(np.float32)
    path, shape = f"blocks_1_0/mixer/window/{name}", (12, 12, 2)
    ours, how = fit(path, table.reshape(49, 2), shape, Views())
    for head in range(2):
        expected = pillow(table[..., head], (12, 12))
        np.testing.assert_allclose(ours[..., head], expected, atol=1e-5)
    assert how == "window 7x7 to 12x12"
    with pytest.raises(Misfit, match="heads"):
        fit(path, table.reshape(49, 2), (12, 12, 3), Views())


def places(old, new):
    """Offsets of the old table: 0 and the sums of a geometric series up to the new."""

    def excess(q):
        return sum(q**i for i in range(old // 2)) - new // 2

    q = brentq(excess, 1.01, 1.5) if excess(1.01) < 0 else 1.01
    side = np.cumsum([q**i for i in range(old // 2)])
    return np.concatenate([-side[::-1], [0], side])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((13, 13), (23, 23)),
        ((13, 13), (15, 31)),
        ((7, 13), (9, 13)),
        ((23, 23), (7, 7)),
    ],
)
def test_offsets_are_stretched_geometrically(old, new):
    table = np.random.default_rng(1).normal(size=(*old, 2))
    pairs = zip(old, new, strict=True)
    grid = [places(o, n) if o != n else np.arange(n) - n // 2 for o, n in pairs]
    wanted = np.stack(
        np.meshgrid(*(np.arange(n) - n // 2 for n in new), indexing="ij"), -1
    )
    expected = RegularGridInterpolator(grid, table, bounds_error=False)(
        np.clip(wanted, [g[0] for g in grid], [g[-1] for g in grid])
    )
    np.testing.assert_allclose(resample.resize_offsets(table, new), expected, atol=1e-4)


def test_offsets_next_to_each_other_stay():
    table = np.random.default_rng(2).normal(size=(13, 13, 1)).astype(np.float32)
    ours = resample.resize_offsets(table, (23, 23))
    np.testing.assert_allclose(ours[10:13, 10:13], table[5:8, 5:8], atol=0.5)
    np.testing.assert_array_equal(ours[11, 11], table[6, 6])


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 5), (1, 3), (3, 6), (4, 2)])
def test_the_same_image_in_every_channel_gives_the_same(old, new):
    rng = np.random.default_rng(3)
    kernel, patch = rng.normal(size=(4, 4, old, 8)), rng.normal(size=(4, 4))
    if old % new and new != 1 and new % old:  # a part of a turn: the mean of many
        kernel = np.broadcast_to(kernel[:, :, :1], kernel.shape)
    ours = resample.adapt_channels(kernel, new)
    assert ours.shape == (4, 4, new, 8)
    if old > new > 1:
        kernel = kernel[:, :, :new] * old / new
    expected = np.einsum("hwio,hw->o", kernel, patch)
    np.testing.assert_allclose(
        np.einsum("hwio,hw->o", ours, patch), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("new", [(8, 8), (20, 20), (5, 9)])
def test_patches_fit_resized_ones_best(new):
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(6, 6, 2, 3))
    basis = np.eye(36).reshape(36, 6, 6)
    resized = np.stack([pillow(b, new).reshape(-1) for b in basis])  # [36, new]
    wanted = kernel.reshape(36, -1)
    expected = np.linalg.lstsq(resized, wanted, rcond=1e-5)[0]
    ours = resample.resize_patches(kernel, new).reshape(new[0] * new[1], -1)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
