"""Metrics against the authors' numbers, scikit-learn, and answers worked out by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest

from cmunext.errors import InputError
from cmunext.metrics import SCORES, Counts, average, count, paper_scores, paper_soft_dice, scores, summarise
from tests.golden_losses import bce_dice_case, cases

GOLDENS = {case["name"]: case for case in cases("metrics")}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GOLDENS)
def test_paper_scores_golden(name, dtype):
    (recipe,) = (case for case in cases("bce_dice") if case["name"] == name)
    logits, target = bce_dice_case(recipe)
    expected = [GOLDENS[name][key] for key in ("iou", "dice", "SE", "PC", "F1", "SP", "ACC")]
    np.testing.assert_allclose(paper_scores(logits.astype(dtype), target), expected, rtol=1e-12)
    if "dice_coef_soft" in GOLDENS[name]:
        assert paper_soft_dice(logits, target) == pytest.approx(GOLDENS[name]["dice_coef_soft"], rel=1e-5, abs=1e-12)


def test_paper_scores_one_half_is_background():
    logits = np.float32([[0.0, 1e-9, 1e-3]])  # the float32 sigmoid of 1e-9 is exactly one half
    assert paper_scores(logits, np.ones((1, 3)))[6] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(6))
def test_against_scikit_learn(seed):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    prediction, truth = (generator.random((4, 3, 17, 13)) < generator.uniform(0.05, 0.95, (4, 3, 1, 1)) for _ in range(2))
    counts = count(prediction, truth)
    assert counts.shape == (4, 3)
    ours = scores(counts)
    for n in range(4):
        for k in range(3):
            t, p = truth[n, k].ravel(), prediction[n, k].ravel()
            tn, fp, fn, tp = sklearn_metrics.confusion_matrix(t, p, labels=[False, True]).ravel()
            assert (counts.tp[n, k], counts.fp[n, k], counts.fn[n, k], counts.tn[n, k]) == (tp, fp, fn, tn)
            expected = {
                "iou": sklearn_metrics.jaccard_score(t, p),
                "dice": sklearn_metrics.f1_score(t, p),
                "sensitivity": sklearn_metrics.recall_score(t, p),
                "precision": sklearn_metrics.precision_score(t, p),
                "specificity": sklearn_metrics.recall_score(t, p, pos_label=False),
                "accuracy": sklearn_metrics.accuracy_score(t, p),
                "f1": sklearn_metrics.f1_score(t, p),
            }
            assert {name: values[n, k] for name, values in ours.items()} == pytest.approx(expected, rel=1e-12)
    summary = summarise(counts[:, 0])
    p, t = prediction[:, 0].ravel(), truth[:, 0].ravel()
    assert summary["pooled"]["iou"] == pytest.approx(sklearn_metrics.jaccard_score(t, p))
    assert summary["pooled"]["specificity"] == pytest.approx(sklearn_metrics.recall_score(t, p, pos_label=False))


EMPTY, FULL = np.zeros((2, 3), bool), np.ones((2, 3), bool)
CORNER = EMPTY.copy()
CORNER[0, 0] = True
NAN = math.nan


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),  # expected in the order of SCORES
    [
        (EMPTY, EMPTY, (1, 1, NAN, NAN, 1, 1, 1)),
        (EMPTY, CORNER, (0, 0, NAN, 0, 5 / 6, 5 / 6, 0)),
        (EMPTY, FULL, (0, 0, NAN, 0, 0, 0, 0)),
        (CORNER, EMPTY, (0, 0, 0, NAN, 1, 5 / 6, 0)),
        (FULL, FULL, (1, 1, 1, 1, NAN, 1, 1)),
        (FULL, CORNER, (1 / 6, 2 / 7, 1 / 6, 1, NAN, 1 / 6, 2 / 7)),
        (FULL, EMPTY, (0, 0, 0, NAN, NAN, 0, 0)),
    ],
)
def test_defined_answers_for_empty_and_full_masks(truth, prediction, expected):
    values = scores(count(prediction, truth))
    assert tuple(values) == SCORES
    np.testing.assert_allclose(list(values.values()), expected, rtol=1e-15)


def test_averages_are_named_and_say_over_how_many():
    counts = count(np.stack([CORNER, EMPTY, FULL]), np.stack([CORNER, EMPTY, CORNER]))
    summary = summarise(counts)
    assert summary["n"] == 3
    assert summary["per_image"]["iou"] == pytest.approx((1 + 1 + 1 / 6) / 3)
    assert summary["pooled"]["iou"] == pytest.approx(2 / 7)
    assert summary["per_image"]["sensitivity"] == 1
    assert summary["per_image_over"]["sensitivity"] == 2
    assert summary["per_image_over"]["iou"] == 3
    assert set(summary["per_image"]) == set(summary["pooled"]) == set(SCORES)


def test_classes_weigh_the_same_and_each_is_reported():
    prediction = np.stack([np.stack([CORNER, EMPTY]), np.stack([FULL, EMPTY])])
    truth = np.stack([np.stack([CORNER, FULL]), np.stack([CORNER, FULL])])
    summary = summarise(count(prediction, truth))
    first, second = summary["classes"]
    assert first["per_image"]["iou"] == pytest.approx((1 + 1 / 6) / 2)
    assert second["per_image"]["iou"] == 0
    assert summary["per_image"]["iou"] == pytest.approx((1 + 1 / 6) / 4)
    assert math.isnan(second["per_image"]["precision"])
    assert second["per_image_over"]["precision"] == 0
    assert summary["per_image"]["precision"] == first["per_image"]["precision"]  # the undefined class is left out
    assert summary["per_image_over"]["precision"] == 2


def test_average_of_nothing_is_nan():
    mean, over = average([[1.0, math.nan], [3.0, math.nan]])
    np.testing.assert_array_equal(mean, [2, math.nan])
    np.testing.assert_array_equal(over, [2, 0])


def test_integers_count_as_masks_and_large_images_do_not_overflow():
    truth = np.full((2, 70, 90), 255, np.uint8)
    counts = count((truth > 0).astype(np.int32), truth)
    assert counts.tp.tolist() == [6300, 6300]
    assert counts.tp.dtype == np.int64
    huge = Counts([3 * 10**9], [10**9], [2 * 10**9], [5 * 10**9])
    assert scores(huge)["dice"][0] == pytest.approx(6 / 9)


def test_stack_and_pool():
    ones = [count(FULL, CORNER), count(EMPTY, CORNER)]
    counts = Counts.stack(ones)
    assert counts.shape == (2,)
    assert (int(counts.pooled().tp), int(counts.pooled().fp), int(counts.pooled().fn), int(counts.pooled().tn)) == (1, 5, 1, 5)


def test_wrong_masks_are_named():
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        count(EMPTY, EMPTY.T)
    with pytest.raises(InputError, match="float64"):
        count(EMPTY.astype(float), EMPTY)
    with pytest.raises(InputError, match=r"\(3,\)"):
        count(EMPTY[0], EMPTY[0])
    with pytest.raises(InputError, match=r"\(0,\)"):
        summarise(count(np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2), bool)))
    with pytest.raises(InputError, match="one shape"):
        paper_scores(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="one shape"):
        Counts([1, 2], [1], [1], [1])


def test_metrics_need_numpy_only():
    code = "import sys, cmunext.metrics; print(sorted({'torch', 'scipy', 'sklearn', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
