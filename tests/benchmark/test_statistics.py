"""Statistics against SciPy, statsmodels, scikit-learn and brute force."""

import itertools
import math

import numpy as np
import pytest

from cmunext.benchmark.statistics import Reliability, bootstrap_mean, holm, wilcoxon
from cmunext.errors import InputError, UsageError

NAN = math.nan


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_equals_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(100 + seed).beta(4, 2, 60)
    ours = bootstrap_mean(values, resamples=2000, level=0.9, seed=seed)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    # other draws: the ends of 2000 resamples scatter by about a tenth of the interval's width
    assert abs(ours.low - theirs.low) < 0.1 * (theirs.high - theirs.low)
    assert abs(ours.high - theirs.high) < 0.1 * (theirs.high - theirs.low)
    assert ours.mean == pytest.approx(values.mean(), rel=1e-14)


def test_bootstrap_ends_are_the_quantiles_of_the_drawn_means():
    values, resamples = np.array([0.1, 0.9, 0.4, 0.7]), 500
    draws = np.random.default_rng(3).integers(0, 4, (resamples, 4))
    means = sorted(float(np.mean([values[i] for i in row])) for row in draws)
    ours = bootstrap_mean(values, resamples=resamples, seed=3)
    for end, quantile in ((ours.low, 0.025), (ours.high, 0.975)):
        position = quantile * (resamples - 1)
        below = int(position)
        expected = means[below] + (position - below) * (means[below + 1] - means[below])
        assert end == pytest.approx(expected, rel=1e-12)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(generator.normal(0.7, 0.2, 80), resamples=400, seed=trial)
        hits += interval.low <= 0.7 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_whole_clusters_are_drawn():
    generator = np.random.default_rng(12)
    centres = generator.normal(0.7, 0.2, 30)
    values = np.repeat(centres, 5)  # five copies of each of 30 images: no more information than the 30
    groups = [f"g{i}" for i in np.repeat(np.arange(30), 5)]
    clustered, single = bootstrap_mean(values, groups, seed=1), bootstrap_mean(centres, seed=1)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), rel=1e-12)
    assert (clustered.n, clustered.groups) == (150, 30)
    naive = bootstrap_mean(values, seed=1)
    assert naive.high - naive.low < 0.6 * (clustered.high - clustered.low)


def test_clusters_of_unequal_size_weigh_by_their_images():
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    interval = bootstrap_mean(values, groups, resamples=4000, level=0.4)
    # draws of two clusters: aa 1, ab 3/4 (half of all), bb 0
    assert (interval.mean, interval.low, interval.high) == (0.75, 0.75, 0.75)


def test_bootstrap_in_blocks_and_degenerate_values(monkeypatch):
    values = np.random.default_rng(13).random(50)
    whole = bootstrap_mean(values, resamples=1000, seed=5)
    monkeypatch.setattr("cmunext.benchmark.statistics.DRAWS_AT_ONCE", 3000)
    assert bootstrap_mean(values, resamples=1000, seed=5) == whole
    one = bootstrap_mean([0.25])
    assert (one.mean, one.n) == (0.25, 1)
    assert np.isnan([one.low, one.high]).all(), "one image tells nothing about the spread"
    assert bootstrap_mean([0.25, NAN, 0.75, NAN], ["a", "b", "c", "d"]).n == 2
    nothing = bootstrap_mean([NAN, NAN])
    assert nothing.n == 0
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_wrong_bootstrap_calls_are_named():
    with pytest.raises(InputError, match="2 group names for 3"):
        bootstrap_mean([1, 2, 3], ["a", "b"])
    with pytest.raises(UsageError, match="95"):
        bootstrap_mean([1, 2, 3], level=95)
    with pytest.raises(UsageError, match="0"):
        bootstrap_mean([1, 2, 3], resamples=0)
    with pytest.raises(InputError, match=r"\(1, 2\)"):
        bootstrap_mean([[1, 2]])


@pytest.mark.parametrize("n", [1, 2, 5, 12, 30, 50, 51, 200])
@pytest.mark.parametrize("shift", [0.0, 0.02])
def test_wilcoxon_equals_scipy_without_ties(n, shift):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(n)
    a = generator.random(n)
    b = a + generator.normal(shift, 0.05, n)
    ours = wilcoxon(a, b)
    theirs = stats.wilcoxon(a, b, method="exact" if n <= 50 else "asymptotic")
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-10)
    wins = stats.wilcoxon(a, b, alternative="greater").statistic  # the rank sum of positive differences
    assert ours.rank_biserial == pytest.approx(2 * wins / (n * (n + 1) / 2) - 1)
    assert ours.median_difference == pytest.approx(np.median(a - b))
    assert (ours.n, ours.wins + ours.losses) == (n, n)


@pytest.mark.parametrize("seed", range(4))
def test_wilcoxon_with_ties_equals_scipy_beyond_fifty(seed):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 12, 150) / 4, generator.integers(0, 13, 150) / 4  # many equal sizes, many zeros
    ours = wilcoxon(a, b)
    theirs = stats.wilcoxon(a, b, zero_method="wilcox", correction=False, method="asymptotic")
    assert ours.ties > 0
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_with_ties_is_exact_up_to_fifty(seed):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(seed)
    difference = generator.integers(-3, 5, 11).astype(float)
    moved = difference[difference != 0]
    ranks = stats.rankdata(np.abs(moved))
    total = ranks.sum()
    observed = min(ranks[moved > 0].sum(), ranks[moved < 0].sum())
    patterns = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(moved))]
    extreme = sum(min(rank_sum, total - rank_sum) <= observed for rank_sum in patterns) / len(patterns)
    assert wilcoxon(difference, np.zeros(11)).p_value == pytest.approx(extreme, rel=1e-12)


def test_wilcoxon_degenerate():
    same = wilcoxon([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.n, same.ties, same.p_value, same.rank_biserial, same.median_difference) == (3, 3, 1, 0, 0)
    always = wilcoxon([2.0, 3.0, 4.5, 6.0, 8.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert (always.rank_biserial, always.p_value, always.wins) == (1, 2 / 32, 5)
    dropped = wilcoxon([0.5, NAN, 0.7, 0.1], [0.4, 0.2, NAN, 0.3])
    assert (dropped.n, dropped.wins, dropped.losses) == (2, 1, 1)
    nothing = wilcoxon([NAN], [1.0])
    assert nothing.n == 0
    assert math.isnan(nothing.p_value)
    infinite = wilcoxon([math.inf, math.inf, 3.0], [math.inf, 2.0, 1.0])
    assert (infinite.ties, infinite.wins, infinite.rank_biserial) == (1, 2, 1)
    with pytest.raises(InputError, match="3 and 2"):
        wilcoxon([1, 2, 3], [1, 2])


@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    generator = np.random.default_rng(seed)
    p_values = np.round(generator.random(9) ** 3, 2)  # rounded: some equal
    np.testing.assert_allclose(holm(p_values), multitest.multipletests(p_values, method="holm")[1], rtol=1e-12)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    np.testing.assert_allclose(holm([0.02, NAN, 0.01]), [0.02, NAN, 0.02])
    assert holm([]).shape == (0,)
    with pytest.raises(InputError, match=r"1\.5"):
        holm([0.1, 1.5])


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_scikit_learns_curve(bins):
    calibration = pytest.importorskip("sklearn.calibration")
    generator = np.random.default_rng(bins)
    probability = generator.beta(0.4, 0.8, (3, 40, 50))
    truth = generator.random((3, 40, 50)) < probability**1.7
    share, mean = calibration.calibration_curve(truth.ravel(), probability.ravel(), n_bins=bins)
    pixels = np.histogram(probability, bins, (0, 1))[0]
    theirs = np.average(abs(share - mean), weights=pixels[pixels > 0])  # the curve leaves empty bins out
    whole = Reliability.of(probability, truth, bins)
    assert whole.expected_calibration_error == pytest.approx(theirs, rel=1e-12)
    parts = [Reliability.of(p, t, bins) for p, t in zip(probability, truth, strict=True)]
    assert (parts[0] + parts[1] + parts[2]).expected_calibration_error == pytest.approx(
        whole.expected_calibration_error, rel=1e-12
    )


def test_calibration_degenerate():
    assert Reliability.of(np.ones(5), np.ones(5, bool)).expected_calibration_error == 0
    assert Reliability.of(np.ones(5), np.zeros(5, bool)).expected_calibration_error == 1
    assert Reliability.of([0.5, 0.5], [True, False]).expected_calibration_error == 0
    assert math.isnan(Reliability.of([], []).expected_calibration_error)
    with pytest.raises(InputError, match="logits"):
        Reliability.of([1.5], [True])
    with pytest.raises(InputError, match="logits"):
        Reliability.of([NAN], [True])
    with pytest.raises(InputError, match="2 probabilities for 1"):
        Reliability.of([0.5, 0.5], [True])
