"""Host transforms against slow, plain re-implementations and known identities."""

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import augment, rand_augment


def pictures(b=8, h=12, w=12, c=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (b, h, w, c), dtype=np.uint8)


def draws(b, k, seed=1):
    return np.random.default_rng(seed).random((b, k))


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_random_crop_takes_a_window_of_the_padded_image(c, fill):
    images, u, p = pictures(c=c, h=12, w=9), draws(8, 2), 3
    got = augment.random_crop(images, u, padding=p, fill=fill)
    for image, (uy, ux), out in zip(images, u, got, strict=True):
        top, left = int(uy * 7) - p, int(ux * 7) - p
        for i in range(12):
            for j in range(9):
                y, x = i + top, j + left
                if fill == "reflect":
                    y, x = (v if v >= 0 else -v for v in (y, x))
                    y, x = (y if y < 12 else 22 - y), (x if x < 9 else 16 - x)
                inside = 0 <= y < 12 and 0 <= x < 9
                expected = image[y, x] if inside else np.zeros(c, np.uint8)
                np.testing.assert_array_equal(out[i, j], expected)


def test_crop_offsets_reach_both_ends():
    images = pictures(b=2)
    ends = augment.random_crop(images, np.array([[0, 0], [0.9999, 0.9999]]), padding=2)
    np.testing.assert_array_equal(ends[0, 2:, 2:], images[0, :-2, :-2])
    np.testing.assert_array_equal(ends[1, :-2, :-2], images[1, 2:, 2:])


@pytest.mark.parametrize("c", [1, 3])
def test_flip_mirrors_columns_below_one_half(c):
    images, u = pictures(c=c), draws(8, 1)
    before = images.copy()
    got = augment.random_flip(images, u)
    for image, row, out in zip(images, u, got, strict=True):
        np.testing.assert_array_equal(out, np.fliplr(image) if row < 0.5 else image)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("c", [1, 3])
def test_random_resized_crop_of_a_ramp_stays_on_the_ramp(c):
    """A crop of a linear ramp, resized, is a ramp over the crop's range."""
    h, w = 60, 80
    ramp = np.linspace(0, 255, w).round().astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (h, w, c))
    u = draws(200, 22)
    out = augment.random_resized_crop([image] * 200, u, size=16)
    assert out.shape == (200, 16, 16, c) and out.dtype == np.uint8
    spans = (out[:, 8, -1, 0].astype(float) - out[:, 8, 0, 0]) / 255 * 16 / 15
    assert spans.min() > 0.2 and spans.max() < 1.1 and np.ptp(spans) > 0.4
    assert (np.diff(out[..., 0].astype(int), axis=2) >= 0).all()


def test_random_resized_crop_falls_back_to_the_centre():
    image = pictures(b=1, h=4, w=40)[0]
    u = np.full((1, 22), 0.5)
    u[:, 0:20:2] = 0.999  # nearly the whole area: no square-like box fits
    got = augment.random_resized_crop([image], u, size=8)
    centre = Image.fromarray(image[:, 17:22])  # 4 x round(4 * 4 / 3)
    expected = centre.resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got[0], np.asarray(expected))


def test_resize_center_crop_keeps_the_aspect_and_the_centre():
    images = [pictures(b=1, h=h, w=w)[0] for h, w in ((30, 41), (50, 20), (16, 16))]
    u = np.empty((3, 0))
    got = augment.resize_center_crop(images, u, size=14, resize=16)
    assert got.shape == (3, 14, 14, 3)
    resized = Image.fromarray(images[0]).resize((21, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got[0], np.asarray(resized)[1:15, 4:18])
    np.testing.assert_array_equal(got[2], images[2][1:15, 1:15])


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("name", rand_augment.OPS)
def test_rand_augment_operations(name, c):
    which = (list(rand_augment.OPS).index(name) + 0.5) / 14
    image = pictures(b=1, h=20, w=16, c=c)[0]
    run = rand_augment.rand_augment
    still = run(image, np.array([which, 0.2]), num_ops=1, magnitude=0)
    if name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(still, image)
    strong = [
        run(image, np.array([which, sign]), num_ops=1, magnitude=30)
        for sign in (0.2, 0.7)
    ]
    for out in (still, *strong):
        assert out.shape == image.shape and out.dtype == np.uint8
    unmoved = ("identity", "autocontrast", "equalize")
    if name not in unmoved and not (name == "color" and c == 1):
        assert (strong[0] != image).any()
    if name.split("_")[0] in ("rotate", "shear", "translate"):
        assert (strong[0] != strong[1]).any()


def test_rand_augment_formulas():
    image = pictures(b=1, h=20, w=16)[0]

    def run(name, magnitude, sign=0.0):
        which = (list(rand_augment.OPS).index(name) + 0.5) / 14
        u = np.array([which, sign])
        return rand_augment.rand_augment(image, u, num_ops=1, magnitude=magnitude)

    wide = image.astype(int)
    np.testing.assert_array_equal(run("posterize", 30), image & 0xF0)
    np.testing.assert_array_equal(
        run("solarize", 15), np.where(wide >= 128, 255 - wide, wide)
    )
    bright = np.clip(wide * (1 + 0.9 / 3), 0, 255)
    assert abs(run("brightness", 10) - bright).max() <= 1
    shifted = run("translate_x", 10 / 0.45 / 16 * 3 * 4)  # four pixels
    np.testing.assert_array_equal(shifted[:, :12], image[:, 4:])
    assert (shifted[:, 13:] == 128).all()
    gray = wide @ [299, 587, 114] / 1000
    pale = gray[..., None] + (wide - gray[..., None]) * 0.1
    assert abs(run("color", 30, sign=0.9) - pale).max() < 1.5  # gray is rounded, too
    turned = run("rotate", 30), run("rotate", 30, sign=0.9)
    assert (turned[0][0, 0] == 128).all() and (turned[1][0, 0] == 128).all()
    quarter = np.asarray(rand_augment._rotate(Image.fromarray(image[:16]), 3.0))
    assert abs(quarter - np.rot90(wide[:16], -1)).max() <= 1


INCREASING = rand_augment.increasing_ops((124, 116, 104))


def test_the_increasing_set_has_the_operations_of_timm():
    """Names and arguments of rand-m9-mstd0.5-inc1, by hand for m9: s = 0.9."""
    image = pictures(b=1, h=20, w=16)[0]
    wide, picture = image.astype(int), Image.fromarray(image)

    def run(name, s):
        return np.asarray(INCREASING[name](picture, s)).astype(int)

    assert len(INCREASING) == 15
    np.testing.assert_array_equal(run("invert", 0.9), 255 - wide)
    np.testing.assert_array_equal(run("posterize", 0.9), wide & 0x80)  # 4 - 3 bits
    np.testing.assert_array_equal(run("posterize", -1.0), wide & 0)
    inverted = np.where(wide >= 256 - 230, 255 - wide, wide)
    np.testing.assert_array_equal(run("solarize", 0.9), inverted)
    brighter = np.where(wide < 128, wide + 99, wide)
    np.testing.assert_array_equal(run("solarize_add", -0.9), brighter)
    assert abs(run("brightness", 0.9) - np.clip(wide * 1.81, 0, 255)).max() <= 1
    assert abs(run("brightness", -1.0) - wide * 0.1).max() <= 1
    for name, s, angle in (("rotate", 0.9, -27), ("rotate", -0.9, 27)):
        turned = picture.rotate(
            angle, Image.Resampling.BICUBIC, fillcolor=(124, 116, 104)
        )
        apart = np.abs(run(name, s) - np.asarray(turned).astype(int))
        assert (apart <= 2).mean() > 0.98
    moved = run("translate_x", 4 / 0.45 / 16)
    np.testing.assert_array_equal(moved[:, :12], wide[:, 4:])
    assert (moved[:, 13:] == (124, 116, 104)).all()
    gray = INCREASING["shear_x"](Image.fromarray(image[..., 0]), 1.0)
    assert np.asarray(gray)[-1, -1] == round((124 + 116 + 104) / 3)


def test_the_increasing_set_is_applied_half_the_time_with_a_normal_strength(
    monkeypatch,
):
    seen = []
    recorded = rand_augment.OpSet(
        lambda fill: {"a": lambda image, s: seen.append((fill, s)) or image}, 0.5
    )
    monkeypatch.setitem(rand_augment.SETS, "increasing", recorded)
    spec = {
        "rand_augment_ops": 2,
        "rand_augment_magnitude": 27,
        "rand_augment_std": 1.5,
    }
    spec["rand_augment_set"] = "increasing"
    transform = augment.build(spec, train=True, mean=(0.485, 0.456, 0.406))
    assert transform.num_uniforms == 8
    u = draws(500, 8)
    transform(pictures(b=500, h=2, w=2), u)
    expected = []
    for _, sign, applied, away in u.reshape(-1, 4):
        s = np.clip(27 + 1.5 * scipy.stats.norm.ppf(away), 0, 30) / 30
        if applied < 0.5:
            expected.append(s if sign < 0.5 else -s)
    np.testing.assert_allclose([s for _, s in seen], expected, rtol=1e-9)
    assert {fill for fill, _ in seen} == {(124, 116, 104)}
    assert max(np.abs(expected)) == 1 and len(expected) in range(430, 570)


def test_build_chains_and_counts_uniforms():
    spec = {
        "image_size": 16,
        "crop_padding": 2,
        "flip": True,
        "rand_augment_ops": 2,
        "rand_augment_magnitude": 9,
    }
    transform = augment.build(spec, train=True)
    assert transform.num_uniforms == 2 + 1 + 4
    images, u = pictures(h=20, w=18), draws(8, 7)
    out = transform(images, u)
    assert out.shape == (8, 16, 16, 3) and out.dtype == np.uint8
    np.testing.assert_array_equal(out, transform(images, u))
    np.testing.assert_array_equal(out[3:5], transform(images[3:5], u[3:5]))
    assert transform.output_shape((20, 18, 3)) == (16, 16, 3)
    for_eval = augment.build(spec, train=False)
    assert for_eval.num_uniforms == 0
    assert augment.build({}, train=True) is None
    assert augment.build({"flip": True}, train=False) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"flipp": True}, "unknown augment field 'flipp'; did you mean 'flip'"),
        ({"flip": 1}, "augment.flip=1 must be bool"),
        ({"crop_padding": -1}, "augment.crop_padding=-1 must be an int >= 0"),
        ({"image_size": 2.5}, "augment.image_size=2.5 must be an int >= 0"),
        ({"crop_fill": "edge"}, "unknown augment.crop_fill 'edge'"),
        ({"rand_augment_magnitude": 31}, "must be a number in 0..30"),
        ({"rand_augment_std": -1}, "must be a number in 0..30"),
        ({"rand_augment_set": "timm"}, "unknown augment.rand_augment_set 'timm'"),
        ({"resized_crop_min_scale": 0.1}, "needs augment.image_size"),
        ({"image_size": 32, "eval_resize": 28}, "image_size in 1..28, got 32"),
    ],
)
def test_wrong_fields_are_named(spec, words):
    with pytest.raises(UserError) as error:
        augment.build(spec, train=True)
    assert words in str(error.value) and "\n" not in str(error.value)
