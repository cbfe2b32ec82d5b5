"""Comparisons against SciPy, statsmodels and brute force."""

import itertools
import math

import numpy as np
import pytest

from cmunext.benchmark.compare import compare, compare_files
from cmunext.errors import InputError, UsageError


def tables(cases: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores of three networks: the second a little better than the first, the third the first with noise of mean 0."""
    generator = np.random.default_rng(seed)
    base = generator.beta(5, 2, cases)
    better = np.clip(base + generator.normal(0.03, 0.04, cases), 0, 1)
    noisy = np.clip(base + generator.normal(0, 0.05, cases), 0, 1)
    noisy[:5] = base[:5]  # ties
    names = [f"case {number}" for number in range(cases)]
    return {
        name: dict(zip(names, map(float, values), strict=True)) for name, values in zip("abc", (base, better, noisy), strict=True)
    }


def test_tests_and_correction_equal_scipy_and_statsmodels():
    stats = pytest.importorskip("scipy.stats")
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    given = tables()
    found = compare(given)
    assert [(pair.a, pair.b) for pair in found.pairs] == list(itertools.combinations("abc", 2))
    expected = []
    for pair in found.pairs:
        a, b = (np.array(list(given[name].values())) for name in (pair.a, pair.b))
        # ours is exact up to 50 differences given shared ranks, and else the approximation without continuity correction
        expected.append(stats.wilcoxon(a, b, method="approx", correction=False).pvalue)
        assert (pair.wins, pair.ties, pair.losses) == ((a > b).sum(), (a == b).sum(), (a < b).sum())
        assert pair.difference == pytest.approx((a - b).mean(), abs=1e-15)
        ranks = stats.rankdata(abs(a - b)[a != b])
        signs = np.sign((a - b)[a != b])
        assert pair.effect == pytest.approx((ranks * signs).sum() / ranks.sum(), rel=1e-12)
    assert [pair.p_value for pair in found.pairs] == pytest.approx(expected, rel=1e-9)
    adjusted = multipletests(expected, method="holm")[1]
    assert [pair.p_adjusted for pair in found.pairs] == pytest.approx(list(adjusted), rel=1e-9)


def test_interval_of_the_difference_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    given = tables()
    pair = compare({name: given[name] for name in "ab"}).pairs[0]
    difference = np.array(list(given["a"].values())) - np.array(list(given["b"].values()))
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    width = theirs.high - theirs.low
    assert pair.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert pair.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_sentences_say_who_is_ahead_and_when_nothing_can_be_shown():
    found = compare(tables())
    of_pair = {(pair.a, pair.b): found.sentence(pair) for pair in found.pairs}
    assert "b is better than a" in of_pair["a", "b"]
    assert "no difference between a and c can be shown" in of_pair["a", "c"]
    assert "Holm-corrected for 3 tests" in of_pair["a", "b"]


@pytest.mark.parametrize("metric", ["hd95", "hd95_cyst", "ece", "ece_cyst", "fp", "fn_cyst"])
def test_of_distances_and_errors_less_is_better(metric):
    found = compare({"near": {f"{n}": 1.0 + n / 10 for n in range(9)}, "far": {f"{n}": 3.0 + n for n in range(9)}}, metric)
    (pair,) = found.pairs
    assert (pair.wins, pair.losses, pair.effect) == (9, 0, 1.0)
    assert pair.difference < 0
    assert pair.median_difference == pytest.approx(-2 - 0.9 * 4)
    assert "near is better than far" in found.sentence(pair)
    assert found.to_dict()["lower_is_better"]


@pytest.mark.parametrize("metric", ["iou", "iou_fp", "surface_dice_ece", "tp", "tn_fn"])
def test_of_anything_else_more_is_better_whatever_a_class_is_called(metric):
    found = compare({"more": {f"{n}": 0.5 + n / 100 for n in range(9)}, "less": {f"{n}": 0.1 for n in range(9)}}, metric)
    assert "more is better than less" in found.sentence(found.pairs[0])
    assert not found.to_dict()["lower_is_better"]


def test_degenerate_scores():
    same = {f"{n}": 0.5 for n in range(7)}
    (pair,) = compare({"a": same, "b": dict(same)}).pairs
    assert (pair.ties, pair.p_adjusted, pair.effect, pair.difference) == (7, 1.0, 0.0, 0.0)
    undefined = dict.fromkeys(same, math.nan)
    found = compare({"a": same, "b": undefined})
    assert found.pairs[0].n == 0
    assert found.to_dict()["pairs"][0]["p_value"] is None
    infinite = {**same, "0": math.inf}
    (pair,) = compare({"a": infinite, "b": same}, "hd95").pairs
    assert (pair.n, pair.losses, pair.difference) == (7, 1, 0.0)


def test_groups_are_drawn_whole():
    given = tables()
    pair = compare({name: given[name] for name in "ab"}).pairs[0]
    copied = {name: {f"{case} {copy}": value for case, value in given[name].items() for copy in range(4)} for name in "ab"}
    found = compare(copied, group_of={case: case.rsplit(" ", 1)[0] for case in copied["a"]})
    assert found.drawn == 60
    assert (found.pairs[0].low, found.pairs[0].high) == pytest.approx((pair.low, pair.high), rel=1e-9)


def test_files_must_hold_the_same_cases(tmp_path):
    for name, cases in (("a", "xyz"), ("b", "zyx"), ("c", "xyw"), ("d", "xy")):
        rows = "".join(f"{case},{0.1 * number},\n" for number, case in enumerate(cases))
        (tmp_path / f"{name}.csv").write_text("case,iou,ece\n" + rows)
    files = {name: tmp_path / f"{name}.csv" for name in "abcd"}
    assert compare_files([files["a"], files["b"]]).pairs[0].ties == 1  # matched by name, not by place
    for other, words in (("c", "c lacks 1 cases of a: 'z'"), ("d", "'z'")):
        with pytest.raises(InputError, match=words):
            compare_files([files["a"], files[other]])
    with pytest.raises(InputError, match="has 1 cases that d lacks"):
        compare_files([files["d"], files["a"]])
    with pytest.raises(UsageError, match="at least two"):
        compare_files([files["a"]])
    with pytest.raises(UsageError, match="twice"):
        compare_files([files["a"], files["a"]])
    for name, side in (("large", 64), ("small", 32)):
        (tmp_path / f"{name}.csv").write_text(f"case,height,width,iou\nx,{side},{side},0.5\n")
    with pytest.raises(InputError, match=r"'x' was measured at 64x64 in .*large\.csv and at 32x32 in .*small\.csv"):
        compare_files([tmp_path / "large.csv", tmp_path / "small.csv"])
    with pytest.raises(InputError, match="no column 'dice'"):
        compare_files([files["a"], files["b"]], "dice")
    (tmp_path / "percent.csv").write_text("case,iou\nx,50\ny,60\nz,70\n")
    with pytest.raises(InputError, match=r"the iou of 'x' in .*percent\.csv is 50; it lies in 0\.\.1"):
        compare_files([files["a"], tmp_path / "percent.csv"])
    with pytest.raises(InputError, match="no numbers"):
        compare_files([files["a"], _with_text(tmp_path)], "iou")


def _with_text(folder):
    path = folder / "text.csv"
    path.write_text("case,iou\nx,good\ny,0.1\nz,0.2\n")
    return path
