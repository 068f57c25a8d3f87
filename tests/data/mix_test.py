"""Mixup, CutMix and smoothing against NumPy formulas."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.data import mix
from normjax.plan.collectives import collective_bytes

CUTMIX = jax.jit(mix.cutmix, static_argnums=3)
MIXUP = jax.jit(mix.mixup, static_argnums=3)


NEIGHBOURS = [1, 0, 3, 2, 5, 4]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 9, 12, 3)).astype(np.float32)
    targets = rng.dirichlet(np.ones(5), size=6).astype(np.float32)
    return images, targets


def test_smoothing_formula():
    got = mix.one_hot_smooth(np.array([2, 0]), 4, 0.1)
    expected = np.full((2, 4), 0.1 / 4)
    expected[0, 2] += 0.9
    expected[1, 0] += 0.9
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(mix.one_hot_smooth(np.array([1]), 3), [[0, 1, 0]])


def test_mixup_is_one_convex_combination_with_the_neighbour(batch):
    images, targets = batch
    lams = []
    for seed in range(5):
        x, y = MIXUP(jax.random.key(seed), images, targets, 0.8)
        difference = images - images[NEIGHBOURS]
        lam = np.sum((x - images[NEIGHBOURS]) * difference) / np.sum(difference**2)
        for got, source in ((x, images), (y, targets)):
            mixed = lam * source + (1 - lam) * source[NEIGHBOURS]
            np.testing.assert_allclose(got, mixed, atol=1e-5)
        np.testing.assert_allclose(np.sum(y, -1), 1, rtol=1e-6)
        assert 0 <= lam <= 1
        lams.append(lam)
    assert np.ptp(lams) > 0.05


def test_an_odd_row_is_its_own_partner(batch):
    np.testing.assert_array_equal(mix.partners(batch[0][:5])[4], batch[0][4])
    np.testing.assert_array_equal(
        mix.partners(batch[0][:5])[:4], batch[0][[1, 0, 3, 2]]
    )


def test_partners_are_on_the_same_device():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), np.float32, sharding=rows)
    targets = jax.ShapeDtypeStruct((16, 10), np.float32, sharding=rows)
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}

    def mixed(seed, images, targets):
        return mix.mix(jax.random.key(seed), images, targets, **settings)

    text = jax.jit(mixed).lower(0, images, targets).compile().as_text()
    assert collective_bytes(text) == {}


def test_lambda_has_the_moments_of_its_beta():
    """A strength of 0.01 underflows as gammas; their logarithms must not."""
    alphas = np.repeat(np.float32([0.01, 0.8]), 3000)
    lam = jax.vmap(mix._beta)(jax.random.split(jax.random.key(0), 6000), alphas)
    for alpha, draws in zip((0.01, 0.8), np.split(np.asarray(lam), 2), strict=True):
        assert abs(draws.mean() - 0.5) < 0.03
        assert abs(draws.var() - 0.25 / (2 * alpha + 1)) < 0.01


def test_cutmix_pastes_one_box_and_weighs_by_its_area(batch):
    images, targets = batch
    clipped = 0
    for seed in range(40):
        x, y = map(np.asarray, CUTMIX(jax.random.key(seed), images, targets, 1.0))
        pasted = (x != images).any(-1)
        assert (pasted == pasted[0]).all()  # the same box in every image
        rows, cols = np.nonzero(pasted[0].any(1))[0], np.nonzero(pasted[0].any(0))[0]
        box = np.zeros((9, 12), bool)
        if rows.size:
            box[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
            clipped += rows[0] == 0 or cols[0] == 0 or rows[-1] == 8 or cols[-1] == 11
        assert (pasted[0] == box).all()
        np.testing.assert_array_equal(x[:, box], images[NEIGHBOURS][:, box])
        area = box.sum() / (9 * 12)
        np.testing.assert_allclose(
            y, (1 - area) * targets + area * targets[NEIGHBOURS], atol=1e-6
        )
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-5)
    assert clipped


def test_mix_switches_between_the_two_and_each_can_be_off(batch):
    images, targets = batch
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    run = jax.jit(lambda key: mix.mix(key, images, targets, **settings))
    pasted = 0
    for seed in range(60):
        x, y = map(np.asarray, run(jax.random.key(seed)))
        pasted += np.isin(x.ravel(), images.ravel()).all()
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-5)
    assert 15 <= pasted <= 45


def test_each_can_be_off(batch, monkeypatch):
    """With one of them off, mix is the other; with both, it hands back its input."""
    images, targets = batch
    key = jax.random.key(0)
    x, y = mix.mix(key, images, targets, mixup_alpha=0, cutmix_alpha=0)
    assert x is images and y is targets
    calls = []
    for name in ("mixup", "cutmix"):
        real = getattr(mix, name)

        def spy(key, images, targets, alpha, name=name, real=real):
            calls.append((name, alpha))
            return real(key, images, targets, 0)

        monkeypatch.setattr(mix, name, spy)
    mix.mix(key, images, targets, mixup_alpha=0.2, cutmix_alpha=0)
    mix.mix(key, images, targets, mixup_alpha=0, cutmix_alpha=0.3)
    assert calls == [("mixup", 0.2), ("cutmix", 0), ("mixup", 0), ("cutmix", 0.3)]


@pytest.mark.parametrize("mixer", [mix.mixup, mix.cutmix])
def test_dtype_is_kept(batch, mixer, monkeypatch):
    monkeypatch.setattr(mix, "_beta", lambda key, alpha: np.float32(0.3))
    half = jax.numpy.asarray(batch[0], jax.numpy.bfloat16)
    x, y = mixer(jax.random.key(1), half, batch[1], 1.0)
    assert x.dtype == half.dtype and y.dtype == np.float32
