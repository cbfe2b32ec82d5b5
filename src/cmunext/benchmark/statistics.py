"""Statistics of scores: bootstrap intervals, paired tests with correction, effect size, calibration. NumPy only.

Scores are one number an image; NaN (undefined) is left out, and each result says over how many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmunext.errors import InputError, UsageError

EXACT_PAIRS = 50  # up to here the Wilcoxon test counts all sign patterns; beyond, the normal approximation is as good
DRAWS_AT_ONCE = 1 << 22  # random indices held in memory


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes
    ----------
    mean : of the values.
    low, high : ends of the interval.
    level : the confidence, for example 0.95.
    n : values in the mean.
    groups : what was drawn: images, or clusters of images.
    """

    mean: float
    low: float
    high: float
    level: float
    n: int
    groups: int


def bootstrap_mean(
    values: ArrayLike, groups: Sequence[object] | None = None, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean over images (Efron and Tibshirani, 1993, chapter 13).

    Parameters
    ----------
    values : (N,) one score an image, or one difference a pair. NaNs are left out.
    groups : (N,) the cluster of each image (near duplicates, one patient); whole clusters are then drawn. By default each image
        is drawn by itself.
    level : confidence, in (0, 1).
    resamples : how often the images (clusters) are drawn with replacement.
    seed : of the draws; the same seed gives the same interval.

    Returns
    -------
    Interval; mean, low and high are NaN when no value is defined, low and high also when there is only one to draw.
    """
    values = _vector(values, "values")
    if not 0 < level < 1:
        raise UsageError(f"the confidence level is {level}; it must lie between 0 and 1, for example 0.95")
    if resamples < 1:
        raise UsageError(f"the number of resamples is {resamples}; it must be at least 1")
    if groups is not None and len(groups) != len(values):
        raise InputError(f"there are {len(groups)} group names for {len(values)} values; give one a value")
    defined = ~np.isnan(values)
    kept = values[defined]
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, level, 0, 0)
    labels: dict[object, int] = {}
    names = range(len(values)) if groups is None else groups
    group = [labels.setdefault(name, len(labels)) for name, ok in zip(names, defined, strict=True) if ok]
    sums, sizes = np.bincount(group, kept), np.bincount(group, np.ones(len(kept)))

    generator, drawn = np.random.default_rng(seed), len(sums)
    if drawn == 1:
        return Interval(float(kept.mean()), math.nan, math.nan, level, len(kept), 1)
    means = np.empty(resamples)
    step = max(1, DRAWS_AT_ONCE // drawn)
    for start in range(0, resamples, step):
        index = generator.integers(0, drawn, (min(step, resamples - start), drawn))
        means[start : start + len(index)] = sums[index].sum(1) / sizes[index].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(kept.mean()), float(low), float(high), level, len(kept), drawn)


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of paired scores a - b.

    Attributes
    ----------
    n : pairs of which both scores are defined.
    wins, ties, losses : pairs with a above, equal to, below b.
    statistic : the smaller of the two rank sums; ties (differences of 0) take no part.
    p_value : two-sided.
    rank_biserial : effect size in [-1, 1]: (rank sum of wins - rank sum of losses) / (sum of all ranks), 1 when a always wins
        (Kerby 2014).
    median_difference : of a - b over the n pairs, ties included.
    """

    n: int
    wins: int
    ties: int
    losses: int
    statistic: float
    p_value: float
    rank_biserial: float
    median_difference: float


def wilcoxon(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test (1945): is a - b symmetric about 0?

    Differences of 0 are dropped, equal sizes share their mean rank. The p-value is exact (given the shared ranks) up to 50
    differences, and beyond the normal approximation with tie correction and without continuity correction. When all differences
    are 0, p is 1 and the effect 0; without any pair both are NaN. Two infinite scores are a tie.

    Parameters
    ----------
    a, b : (N,) scores of the same images in the same order. A pair with a NaN is left out.
    """
    a, b = _vector(a, "a"), _vector(b, "b")
    if a.shape != b.shape:
        raise InputError(f"there are {len(a)} and {len(b)} scores; a paired test needs the same images in both")
    with np.errstate(invalid="ignore"):  # inf - inf, of two undefined distances: equal, so 0
        difference = np.where(a == b, 0.0, a - b)
    difference = difference[~np.isnan(difference)]
    n, wins, losses = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
    if not n:
        return PairedTest(0, 0, 0, 0, math.nan, math.nan, math.nan, math.nan)
    median = float(np.median(difference))
    if not wins + losses:
        return PairedTest(n, 0, n, 0, 0.0, 1.0, 0.0, median)

    moved = difference[difference != 0]
    ranks = _ranks(np.abs(moved))
    positive, total = float(ranks[moved > 0].sum()), float(ranks.sum())
    smaller = min(positive, total - positive)
    if len(moved) <= EXACT_PAIRS:
        p_value = _exact_p_value(ranks, smaller)
    else:
        variance = (ranks**2).sum() / 4  # n(n+1)(2n+1)/24 - sum(t^3 - t)/48 of shared ranks
        p_value = math.erfc(abs(positive - total / 2) / math.sqrt(2 * variance))
    return PairedTest(n, wins, n - wins - losses, losses, smaller, min(1.0, p_value), 2 * positive / total - 1, median)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down correction (1979): (M,) p-values -> (M,) adjusted, which hold the family-wise error rate.

    A NaN stays NaN and is not counted among the tests.
    """
    p_values = _vector(p_values, "p-values")
    if ((p_values < 0) | (p_values > 1)).any():
        raise InputError(f"a p-value is {p_values[(p_values < 0) | (p_values > 1)][0]}; it must lie in [0, 1]")
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]  # NaNs sort last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


@dataclass(frozen=True, eq=False)
class Reliability:
    """Pixels binned by their predicted probability, for calibration. Two of one kind add up with `+`.

    Attributes
    ----------
    pixels : (B,) int64, pixels in each of B equal bins of [0, 1].
    probability : (B,) float64, sum of their predicted probabilities.
    positive : (B,) int64, how many of them are foreground.
    """

    pixels: NDArray[np.int64]
    probability: NDArray[np.float64]
    positive: NDArray[np.int64]

    @classmethod
    def of(cls, probability: ArrayLike, truth: ArrayLike, bins: int = 15) -> "Reliability":
        """Bin probabilities in [0, 1] and truths (bool) of one shape. Bin i holds i/B <= p < (i+1)/B, the last one p = 1 too."""
        probability, truth = np.asarray(probability, np.float64).ravel(), np.asarray(truth, bool).ravel()
        if len(probability) != len(truth):
            raise InputError(f"there are {len(probability)} probabilities for {len(truth)} pixels; give one shape")
        if bins < 1:
            raise UsageError(f"the number of bins is {bins}; it must be at least 1")
        if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
            raise InputError("a probability lies outside [0, 1] or is NaN; give probabilities, not logits")
        index = np.minimum((probability * bins).astype(np.int64), bins - 1)
        return cls(
            np.bincount(index, minlength=bins),
            np.bincount(index, probability, minlength=bins).astype(np.float64),
            np.bincount(index[truth], minlength=bins),
        )

    def bins(self) -> list[dict[str, float]]:
        """The bins for a reliability diagram: {"low", "high", "pixels", "probability", "positive"}, the last two means over the bin's
        pixels, NaN without one. Calibrated is where they are equal."""
        edges = np.linspace(0, 1, len(self.pixels) + 1)
        with np.errstate(invalid="ignore"):
            probability, positive = self.probability / self.pixels, self.positive / self.pixels
        columns = (edges[:-1], edges[1:], probability, positive)
        return [
            {"low": float(low), "high": float(high), "pixels": int(pixels), "probability": float(mean), "positive": float(share)}
            for pixels, low, high, mean, share in zip(self.pixels, *columns, strict=True)
        ]

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.pixels + other.pixels, self.probability + other.probability, self.positive + other.positive)

    @property
    def expected_calibration_error(self) -> float:
        """ECE of the foreground probability: mean over pixels of |mean probability - share of foreground| of their bin.

        In [0, 1], 0 is calibrated, NaN without pixels (Naeini et al. 2015; Guo et al. 2017, equation 3, with the probability of
        foreground in place of the top label's). Most pixels of an image are easy background, so a small value says little by
        itself; it is for comparing networks on the same images.
        """
        total = int(self.pixels.sum())
        return float(np.abs(self.probability - self.positive).sum() / total) if total else math.nan


def _ranks(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _exact_p_value(ranks: NDArray[np.float64], smaller: float) -> float:
    """P(one of the two rank sums is at most `smaller`) when every sign is a fair coin, by counting sign patterns."""
    doubled = np.rint(2 * ranks).astype(int)  # shared ranks are halves
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    ways /= ways.sum()
    return 2 * float(ways[: round(2 * smaller) + 1].sum())


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise InputError(f"{name} are of {values.shape}; give one number an image, a single axis")
    return values
