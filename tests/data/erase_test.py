"""Random erasing: boxes, noise and shares against the published distribution."""

import jax
import numpy as np
import pytest

from normjax.data.erase import erase

ERASE = jax.jit(erase, static_argnums=2)
SIDES = 40, 60


@pytest.fixture(scope="module")
def erased():
    """4,000 images of zeros and what became of them."""
    images = np.zeros((4000, *SIDES, 1), np.float32)
    return np.asarray(ERASE(jax.random.key(0), images, 0.25))[..., 0]


def boxes(erased):
    """(rows, columns, top, left) of the box in every image that has one."""
    found = []
    for image in erased[(erased != 0).any((1, 2))]:
        rows, columns = (np.flatnonzero((image != 0).any(axis)) for axis in (1, 0))
        height, width = (np.ptp(i) + 1 for i in (rows, columns))
        assert (image != 0).sum() == height * width  # a full box, no holes
        found.append((height, width, rows[0], columns[0]))
    return np.array(found)


def test_a_quarter_of_the_images_has_one_box(erased):
    share = (erased != 0).any((1, 2)).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_boxes_have_the_areas_ratios_and_places_of_the_recipe(erased):
    """Draws of the same rule by NumPy have the same quantiles."""
    rng, expected = np.random.default_rng(1), []
    height, width = SIDES
    while len(expected) < 20_000:
        area = rng.uniform(0.02, 1 / 3) * height * width
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if h < height and w < width:
            place = rng.integers(height - h + 1), rng.integers(width - w + 1)
            expected.append((h, w, *place))
    found, expected = boxes(erased), np.array(expected)
    for column in range(4):
        for q in (0.1, 0.5, 0.9):
            near = np.quantile(expected[:, column], [q - 0.06, q + 0.06])
            assert near[0] <= np.quantile(found[:, column], q) <= near[1]
    assert found[:, 0].max() < height and found[:, 1].max() < width
    assert (found[:, 2] + found[:, 0]).max() == height  # the last place is reached
    assert (found[:, 3] + found[:, 1]).max() == width


def test_noise_is_normal_for_every_pixel_and_channel():
    images = np.zeros((200, 16, 16, 3), np.float32)
    found = np.asarray(ERASE(jax.random.key(1), images, 1.0))
    inside = (found != 0).any(-1)
    assert inside.any((1, 2)).all()
    noise = found[inside]
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05


def test_an_image_depends_on_its_place_alone():
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    key = jax.random.key(2)
    whole = np.asarray(ERASE(key, images, 0.5))
    np.testing.assert_array_equal(ERASE(key, images[:4], 0.5), whole[:4])
    kept = (whole == images).all((1, 2, 3))
    assert 0 < kept.sum() < 8
    assert erase(key, images, 0.0) is images
    half = jax.numpy.asarray(images, jax.numpy.bfloat16)
    assert ERASE(key, half, 0.5).dtype == half.dtype
