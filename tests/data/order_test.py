"""Order: permutations per epoch, endless batches, nothing but (seed, position)."""

import numpy as np
import pytest

from normjax.data import order


def test_every_epoch_is_a_permutation_of_its_own():
    first, second = order.permutation(3, 0, 101), order.permutation(3, 1, 101)
    assert sorted(first) == sorted(second) == list(range(101))
    assert (first != second).any()
    assert (first != order.permutation(4, 0, 101)).any()
    assert first.dtype == np.int64


@pytest.mark.parametrize("batch_size", [1, 7, 10, 25])
def test_batches_run_through_the_epochs_without_a_gap(batch_size):
    n = 10
    steps = 60 // batch_size
    run = np.concatenate(
        [order.example_indices(5, s, batch_size, n) for s in range(steps)]
    )
    expected = np.concatenate([order.permutation(5, e, n) for e in range(6)])
    np.testing.assert_array_equal(run, expected[: len(run)])


def test_order_is_the_raw_philox_stream():
    """The stream of (seed, epoch) is settled: runs resume over versions of NumPy."""
    words = np.random.Philox(key=7 + (0 << 64), counter=2 << 192).random_raw(16)
    ranks = sorted(range(16), key=words.tolist().__getitem__)
    assert order.permutation(7, 2, 16).tolist() == ranks


def test_any_seed_and_a_late_step_are_fine():
    for seed in (-1, 2**63, 2**70):
        assert sorted(order.permutation(seed, 0, 5)) == list(range(5))
    late = order.example_indices(0, 10**9, 4, 50_000)
    assert ((late >= 0) & (late < 50_000)).all()


def test_uniforms_fill_the_unit_interval_and_differ_by_step_and_seed():
    u = order.uniforms(0, 3, 2000, 4)
    assert u.shape == (2000, 4) and u.dtype == np.float64
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(u.var(0), 1 / 12, atol=0.01)
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.1
    assert (u != order.uniforms(0, 4, 2000, 4)).all()
    assert (u != order.uniforms(1, 3, 2000, 4)).all()
    np.testing.assert_array_equal(u, order.uniforms(0, 3, 2000, 4))
