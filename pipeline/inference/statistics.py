"""Statistics of an evaluation: intervals, calibration, confusion, and the test of a difference.

A sample is a video. Everything is computed from one prediction per video, so that the number of
views, ranks and batches does not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
EXACT_BELOW = 25
"""With fewer discordant videos than this, McNemar's test uses the binomial distribution itself."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Interval(NamedTuple):
    """An interval that covers the true value with the stated confidence."""

    low: float
    high: float


class McNemar(NamedTuple):
    """McNemar's test of whether two models err on the same share of the same videos."""

    only_first: int
    """Videos that only the first model classifies correctly."""
    only_second: int
    p_value: float
    """Probability of a split at least as uneven if both models were equally good."""
    exact: bool
    """Whether `p_value` comes from the binomial distribution, not its chi-squared limit."""


class ReliabilityBin(NamedTuple):
    """The videos whose highest probability lies in one interval."""

    low: float
    high: float
    videos: int
    confidence: float
    """Mean of the highest probabilities; 0 for an empty bin."""
    accuracy: float
    """Fraction of the videos whose most probable class is their label; 0 for an empty bin."""


def wilson_interval(correct: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of an accuracy of which only the counts are known.

    It serves for published figures and for summaries; where the predictions are at hand,
    `bootstrap_accuracy` makes no assumption about them. Without samples it is (0, 1).

    Raises ValueError unless 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} videos cannot be correct")
    if total == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest  # takes two seconds, which few commands need

    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def wilson_of_share(share: float, total: int) -> Interval:
    """Return `wilson_interval` for a share of `total` videos, of which a figure is known."""
    return wilson_interval(round(share * total), total)


def bootstrap_accuracy(
    correct: Flags, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """Return the percentile bootstrap interval of the fraction of true values; (0, 1) for none.

    Resampling n videos with replacement and counting the correct ones is a draw from the binomial
    distribution with n trials and the observed fraction, so the counts are drawn directly.

    Args:
        correct: (videos,) bool.
    """
    videos = len(correct)
    if not videos:
        return Interval(0.0, 1.0)
    counts = np.random.default_rng(seed).binomial(videos, correct.mean(), resamples)
    return _percentiles(counts / videos, confidence)


def bootstrap_difference(
    first: Flags,
    second: Flags,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the bootstrap interval of accuracy(second) - accuracy(first) on the same videos.

    A video keeps both answers when it is drawn, which makes the interval narrower than that of two
    independent accuracies.

    Args:
        first, second: (videos,) bool, in the same order of videos.
    """
    videos = len(first)
    if not videos:
        return Interval(-1.0, 1.0)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    shares = np.array([lost, won, videos - lost - won]) / videos
    counts = np.random.default_rng(seed).multinomial(videos, shares, resamples)
    return _percentiles((counts[:, 1] - counts[:, 0]) / videos, confidence)


def mcnemar(first: Flags, second: Flags) -> McNemar:
    """Test whether two models are equally accurate, from their answers on the same videos.

    Below `EXACT_BELOW` discordant videos the test is the two-sided binomial test; above, it is the
    chi-squared test with Edwards' continuity correction.
    Source: Q. McNemar, Psychometrika 12 (1947).

    Args:
        first, second: (videos,) bool, in the same order of videos.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_first + only_second
    if discordant == 0:
        return McNemar(0, 0, 1.0, exact=True)
    from scipy.stats import binomtest, chi2

    if discordant < EXACT_BELOW:
        p_value = float(binomtest(only_first, discordant, 0.5).pvalue)
        return McNemar(only_first, only_second, p_value, exact=True)
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    return McNemar(only_first, only_second, float(chi2.sf(statistic, 1)), exact=False)


def confusion(label: Integers, predicted: Integers, num_classes: int) -> Integers:
    """Return the number of videos per (label, prediction): (num_classes, num_classes) int64."""
    cells = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


def per_class_accuracy(matrix: Integers) -> Floats:
    """Return the accuracy of each class, (num_classes,); NaN for a class without videos.

    `matrix` is that of `confusion`.
    """
    videos = matrix.sum(1)
    accuracy = np.full(len(videos), np.nan)
    np.divide(matrix.diagonal(), videos, out=accuracy, where=videos > 0)
    return accuracy


def reliability(confidence: Floats, correct: Flags, num_bins: int = 15) -> list[ReliabilityBin]:
    """Group videos by their highest probability into bins of equal width over (0, 1].

    Args:
        confidence: (videos,) highest probability of each video.
        correct: (videos,) bool, whether the most probable class is the label.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    # A bin contains its upper edge, so a confidence of exactly 1 lies in the last one.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    count = np.bincount(bin_of, minlength=num_bins)
    sums = [np.bincount(bin_of, values, minlength=num_bins) for values in (confidence, correct)]
    means = [np.divide(s, count, out=np.zeros(num_bins), where=count > 0) for s in sums]
    columns = (edges[:-1], edges[1:], count, *means)
    return [ReliabilityBin(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Return the mean gap between confidence and accuracy over the videos; 0 without videos.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    videos = sum(b.videos for b in bins)
    return sum(b.videos * abs(b.accuracy - b.confidence) for b in bins) / max(videos, 1)


def _percentiles(draws: Floats, confidence: float) -> Interval:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(low), float(high))
