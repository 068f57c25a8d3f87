"""Calibration against loops over examples, closed forms and other libraries."""

import itertools

import matplotlib.image
import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics

from normjax import calibration
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(83, 4))
LABELS = np.where(RNG.random(83) < 0.6, LOGITS.argmax(1), RNG.integers(0, 4, 83))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
C, H = P.max(1), (P.argmax(1) == LABELS).astype(float)


def in_bins(c, h, edges):
    """[(confidences, hits)] of the bins (l, u] that are not empty, by comparisons."""
    inside = [(c > a) & (c <= b) for a, b in itertools.pairwise(edges)]
    return [(c[i], h[i]) for i in inside if i.any()]


def ece(c, h, edges):
    return sum(abs((a - b).sum()) for a, b in in_bins(c, h, edges)) / len(c)


def test_errors_of_equally_wide_bins():
    bins, edges = calibration.reliability(C, H, 7), np.linspace(0, 1, 8)
    gaps = [a.mean() - b.mean() for a, b in in_bins(C, H, edges)]
    shares = [len(a) / len(C) for a, _ in in_bins(C, H, edges)]
    assert calibration.expected_error(bins) == pytest.approx(ece(C, H, edges))
    assert calibration.maximum_error(bins) == pytest.approx(np.abs(gaps).max())
    assert calibration.average_error(bins) == pytest.approx(np.abs(gaps).mean())
    square = np.dot(shares, np.square(gaps))
    assert calibration.root_mean_square_error(bins) == pytest.approx(square**0.5)
    each = [ece(P[:, k], k == LABELS, edges) for k in range(4)]
    found = calibration.classwise_error(P, LABELS, 7)
    assert found == pytest.approx(np.mean(each))


def test_a_probability_of_0_and_one_on_an_edge():
    bins = calibration.reliability([0.0, 0.5, 1.0], [1, 1, 1], 2)
    assert (bins.count.tolist(), bins.examples) == ([1, 1], 3)
    assert calibration.expected_error(bins) == pytest.approx(0.5 / 3)
    empty = calibration.reliability([0.0], [0])
    assert calibration.maximum_error(empty) == calibration.average_error(empty) == 0


@pytest.mark.parametrize(
    ("cut", "sizes"), [("split", [17, 17, 17, 16, 16]), ("ceil", [17] * 4 + [15])]
)
def test_bins_of_as_many_examples(cut, sizes):
    edges = calibration.equal_mass_edges(C, 5, cut)
    bins = calibration.reliability(C, H, edges)
    assert bins.count.tolist() == sizes
    assert calibration.expected_error(bins) == pytest.approx(ece(C, H, edges))


def test_interpolated_edges_leave_out_the_smallest():
    bins = calibration.reliability(
        C, H, calibration.equal_mass_edges(C, 5, "interpolated")
    )
    assert (bins.count.sum(), bins.examples) == (82, 83)


@pytest.mark.parametrize("threshold", [None, 0.02])
def test_runs_of_each_class(threshold):
    total = 0.0
    for k in range(4):
        rows = sorted((p, y == k) for p, y in zip(P[:, k], LABELS, strict=True))
        rows = [r for r in rows if threshold is None or r[0] > threshold]
        size = len(rows) // 6
        cuts = [rows[i * size : (i + 1) * size] for i in range(5)] + [rows[5 * size :]]
        total += sum(abs(sum(p - y for p, y in run)) for run in cuts)
    found = calibration.adaptive_error(P, LABELS, 6, threshold)
    assert found == pytest.approx(total / P.size)


def test_without_bins():
    order = sorted(range(len(C)), key=lambda i: C[i])
    sums = [abs(sum(C[i] - H[i] for i in order[:j])) for j in range(1, len(C) + 1)]
    found = calibration.kolmogorov_smirnov_error(C, H)
    assert found == pytest.approx(max(sums) / len(C))


def test_densities():
    """By the same integral over differences of a polynomial's antiderivative."""
    width, x = 3 * H.dot((C - C[H > 0].mean()) ** 2) ** 0.5, np.linspace(0, 1, 4001)
    width = width / H.sum() ** 0.5 * (2 * len(C)) ** -0.2

    def density(data):
        data = np.concatenate([data, np.where(data < 0.5, -data, 2 - data)])
        v = np.abs(x[:, None] - data) / width
        return np.where(v < 1, (1 - v**2) ** 3, 0).mean(1) * 35 / 16 / width

    every, right = density(C), density(C[H > 0])
    share = np.clip(H.mean() * right / np.maximum(every, 1e-300), 0, 1)
    expected = np.mean(np.abs(x - share) * every) / np.mean(every)
    assert calibration.kernel_error(C, H) == pytest.approx(expected, rel=2e-3)


def test_scores():
    loss = sklearn.metrics.log_loss(LABELS, P)
    assert calibration.negative_log_likelihood(LOGITS, LABELS) == pytest.approx(loss)
    brier = np.mean(
        [sum((p - (np.arange(4) == y)) ** 2) for p, y in zip(P, LABELS, strict=True)]
    )
    assert calibration.brier_score(P, LABELS) == pytest.approx(brier)
    wrong = [1 - H[i] for i in sorted(range(len(C)), key=lambda i: -C[i])]
    risk = np.mean([np.mean(wrong[:j]) for j in range(1, len(C) + 1)])
    best = np.mean([np.mean(sorted(wrong)[:j]) for j in range(1, len(C) + 1)])
    assert calibration.risk_coverage(C, H) == pytest.approx(risk)
    assert calibration.excess_risk_coverage(C, H) == pytest.approx(risk - best)


def test_temperature():
    def loss(t):
        z = LOGITS / t
        return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(83), LABELS])

    found = calibration.fit_temperature(LOGITS, LABELS)
    best = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 20), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-5)
    score = lambda p, y: sklearn.metrics.log_loss(y, p)  # noqa: E731
    assert abs(calibration.scan_temperature(LOGITS, LABELS, score) - found) < 0.1
    hotter = calibration.fit_temperature(1000 * LOGITS, LABELS)
    assert hotter == pytest.approx(1000 * found)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, 0.0]], [0], "every answer is right"),
        ([[1.0, 0.0]], [1], "say nothing of the labels"),
        ([[1.0, 0.0]], [2], "outside of the 2 classes"),
        ([[1.0, 0.0]], [0, 0], "not \\[N, K\\], \\[N\\]"),
    ],
)
def test_no_temperature(logits, labels, message):
    with pytest.raises(UserError, match=message):
        calibration.fit_temperature(logits, labels)


def test_too_many_bins():
    for call in (
        calibration.equal_mass_edges,
        lambda c, n: calibration.adaptive_error(P, LABELS, n),
    ):
        with pytest.raises(UserError, match="bins"):
            call(C, 99)
    with pytest.raises(UserError, match="mean 'split'"):
        calibration.equal_mass_edges(C, 3, "splitt")


def test_a_picture_for_every_title(tmp_path):
    bins = calibration.reliability(C, H)
    calibration.draw_reliability({"a": bins, "b": bins}, tmp_path / "r.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "r.png").shape
    assert width == 2 * height
