"""What a paper claims about a study's numbers, and whether they show it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Cell = tuple[str, str]
"""Row and column of a study's table."""

SEEN = "seen"
NOT_SEEN = "not seen"
OPPOSITE = "opposite"
WITHIN_NOISE = "within noise"


class Claim(NamedTuple):
    """`metric` is larger in `more` than in `less`; or, with `no_less`, not smaller.

    Attributes:
      statement: the claim in a sentence.  source: paper, year.
      published: its own figures.
      more, less: cells of the study, or a number.
      metric: of the results; empty: that of the study.
      margin: the gap is larger than this; or, with `no_less`, larger than minus this.
      no_less: `more` is claimed to be as large as `less`, or larger.
    """

    statement: str
    source: str
    published: str
    more: Cell | float
    less: Cell | float
    metric: str = ""
    margin: float = 0.0
    no_less: bool = False


class Sample(NamedTuple):
    """Mean and standard deviation over seeds, and how many there are."""

    mean: float
    spread: float
    count: int


def sample_of(values: Sequence[float], worst: float) -> Sample:
    """Mean and standard deviation, with n - 1 in its denominator.

    Args:
      values: of each seed; NaN where it diverged.
      worst: what a run that diverged counts as; where that is infinite, one such run
        makes the mean infinite and the spread zero.
    """
    finite = [worst if math.isnan(value) else value for value in values]
    if not finite:
        return Sample(math.nan, 0.0, 0)
    if math.inf in finite:
        return Sample(math.inf, 0.0, len(finite))
    spread = statistics.stdev(finite) if len(finite) > 1 else 0.0
    return Sample(statistics.fmean(finite), spread, len(finite))


def verdict(more: Sample, less: Sample, margin: float, no_less: bool = False) -> str:
    """Whether `more` is larger than `less` by `margin`; or no smaller, up to `margin`.

    The gap is m_more - m_less, the noise the standard deviation of the difference of
    two runs, sqrt(s_more^2 + s_less^2): a gap within it decides nothing, but that
    `more` is no less where gap - noise is at least -margin.

    Returns:
      "seen"; "opposite": `more` is smaller, and by more than the margin with `no_less`;
      "within noise"; "not seen": the gap is real and smaller than claimed, or one of
      the two has no results, or both are infinite.
    """
    gap, noise = more.mean - less.mean, math.hypot(more.spread, less.spread)
    if math.isnan(gap):
        return NOT_SEEN
    if gap - noise >= -margin if no_less else gap > max(margin, noise):
        return SEEN
    if abs(gap) <= noise:
        return WITHIN_NOISE
    return OPPOSITE if gap < 0 else NOT_SEEN


def values_of(results: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """A metric of each seed; NaN where it diverged. Results without it are left out."""
    return [
        result.get(metric, math.nan)
        for result in results
        if metric in result or "error" in result
    ]


class Finding(NamedTuple):
    """A claim, what was measured for it, and the verdict."""

    claim: Claim
    more: Sample
    less: Sample
    verdict: str


def judge(
    claim: Claim,
    results: Mapping[Cell, Sequence[Mapping[str, Any]]],
    metric: str,
    worst: float,
) -> Finding:
    """The verdict on a claim.

    Args:
      results: of the runs of each cell.
      metric: of the study.  worst: see `sample_of`.
    """
    name = claim.metric or metric

    def sample(side: Cell | float) -> Sample:
        if not isinstance(side, tuple):
            return Sample(float(side), 0.0, 1)
        return sample_of(values_of(results[side], name), worst)

    more, less = sample(claim.more), sample(claim.less)
    return Finding(
        claim, more, less, verdict(more, less, claim.margin, no_less=claim.no_less)
    )
