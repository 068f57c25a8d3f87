"""Order: permutations per epoch, endless batches, nothing but (seed, position)."""

import itertools
import math
import tracemalloc

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


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 101, 1023, 1024, 1025])
def test_a_calculated_order_is_a_permutation_of_its_own_by_epoch(n):
    first, second = (order.shuffled(3, e, n, np.arange(n)) for e in range(2))
    assert sorted(first) == sorted(second) == list(range(n))
    assert first.dtype == np.int64
    if n >= 100:
        other = order.shuffled(4, 0, n, np.arange(n))
        assert np.mean(first == second) < 0.1 and np.mean(first == other) < 0.1


def test_a_calculated_order_is_uniform():
    """Chi-square of pairs of neighbours over 6,000 epochs: 30 pairs, 200 of each."""
    pairs = [order.shuffled(0, e, 6, np.arange(2)) for e in range(6000)]
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    assert not counts.diagonal().any()
    expected = 6000 / 30
    chi_square = ((counts - expected) ** 2 / expected)[~np.eye(6, dtype=bool)].sum()
    assert chi_square < 58.3  # 29 degrees of freedom, p = 0.001


def test_neighbours_in_a_calculated_order_are_strangers():
    indices = order.shuffled(1, 0, 10**6, np.arange(20_000)) / 1e6
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.03
    np.testing.assert_allclose(
        np.histogram(indices, 10, (0, 1))[0] / 20_000, 0.1, atol=0.01
    )


def test_the_order_of_very_many_examples_takes_no_memory_of_their_number():
    n = 600_000_000
    tracemalloc.start()
    batches = [order.example_indices(0, n // 4096 + s, 4096, n) for s in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert len(np.unique(batches)) == 8192 and np.max(batches) < n


@pytest.mark.parametrize("n", [5, 600_000_000])
def test_a_calculated_order_is_settled(n):
    """In Python's integers, from the raw Philox stream."""
    keys = np.random.Philox(key=7 + (2 << 64), counter=2 << 192).random_raw(8).tolist()
    rows = math.ceil(math.sqrt(n))
    columns = math.ceil(n / rows)

    def mixed(z):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return (z ^ (z >> 31)) >> 1

    def settled(position):
        row, column = divmod(position, columns)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            row = (row + mixed(column ^ first)) % rows
            column = (column + mixed(row ^ second)) % columns
        number = row * columns + column
        return number if number < n else settled(number)

    expected = [settled(p) for p in range(5)]
    assert order.shuffled(7, 2, n, np.arange(5)).tolist() == expected


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


@pytest.mark.parametrize(("n", "repeats"), [(12, 3), (13, 3), (11, 2), (40, 4)])
@pytest.mark.parametrize("batch_size", [6, 8, 20])
def test_repeats_follow_one_another_and_lie_apart_in_a_batch(n, repeats, batch_size):
    """An epoch of n draws has each of its first examples `repeats` times."""
    drawn = []
    for epoch in range(8):
        often = np.repeat(order.permutation(5, epoch, n), repeats)
        drawn += often[:n].tolist()
    for step in range(6 * n // batch_size):
        got = order.example_indices(5, step, batch_size, n, repeats)
        part = drawn[step * batch_size : (step + 1) * batch_size]
        assert sorted(got) == sorted(part)
        first = step * batch_size
        by_copy = [
            [drawn[p] for p in range(first, first + batch_size) if p % repeats == copy]
            for copy in range(repeats)
        ]
        assert got.tolist() == list(itertools.chain(*by_copy))


def test_neighbours_in_a_batch_with_repeats_are_different_examples():
    for step in range(20):
        got = order.example_indices(0, step, 64, 5000, 3)
        assert (got[::2] != got[1::2]).all()
        assert len(set(got)) in (22, 23)  # 64 / 3, and what is shared with others
