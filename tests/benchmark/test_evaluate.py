"""Evaluation of a network whose answer is known: it outlines what is bright. The segmenter, files and dataset folder are real."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.bright import NAMES, SIZE, brightness, with_second_class, write_cases

from cmunext.benchmark.evaluate import evaluate
from cmunext.data.layout import Layout
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image, read_mask, write_image, write_mask
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import LEARNT_FROM, image_digest
from cmunext.metrics import SCORES


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_cases(tmp_path / "data")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_counts_are_those_of_the_masks_that_segment_gives(dataset):
    segmenter = brightness()
    evaluation = evaluate(segmenter, Layout.open(dataset), NAMES)
    for n, name in enumerate(NAMES):
        image, truth = read_image(dataset / "images" / f"{name}.png"), read_mask(dataset / "masks/0" / f"{name}.png")
        mask = segmenter(image).mask
        found = tuple(int(getattr(evaluation.counts, key)[n, 0]) for key in ("tp", "fp", "fn", "tn"))
        assert found == ((mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum(), (~mask & ~truth).sum())
    iou = evaluation.per_image()["iou"]
    assert iou[0] > 0.9
    assert 0.3 < iou[1] < 0.7
    assert (iou[2], iou[3]) == (0, 1)


def test_network_size_compares_there_with_the_nearest_truth(dataset):
    segmenter = brightness()
    evaluation = evaluate(segmenter, Layout.open(dataset), NAMES, at="network")
    assert set(evaluation.sizes) == {SIZE}
    image, truth = read_image(dataset / "images/benign (2).png"), read_mask(dataset / "masks/0/benign (2).png")
    small = cv2.resize(truth.astype(np.uint8), SIZE[::-1], interpolation=cv2.INTER_NEAREST) > 0
    mask = segmenter.predict_logits(image)[0] > 0
    expected = (mask & small).sum() / (mask | small).sum()
    assert evaluation.per_image()["iou"][1] == pytest.approx(expected, rel=1e-15)


def test_images_that_the_weights_learnt_from_are_counted_by_their_pixels(dataset):
    silent = brightness()
    assert evaluate(silent, Layout.open(dataset), NAMES).summary()["learnt_from"] is None
    seen = image_digest(read_image(dataset / "images" / f"{NAMES[1]}.png"))
    metadata = replace(silent.metadata, training={LEARNT_FROM: [seen, "0" * 16]})
    told = Segmenter(replace(silent.backend, metadata=metadata))
    assert evaluate(told, Layout.open(dataset), NAMES).summary()["learnt_from"] == 1
    assert evaluate(told, Layout.open(dataset), NAMES[2:]).summary()["learnt_from"] == 0


def test_table_has_one_row_a_case(dataset, tmp_path):
    evaluation = evaluate(brightness(), Layout.open(dataset), NAMES, surface=True, tolerance=3)
    evaluation.write(tmp_path / "out" / "scores.csv")
    rows = rows_of(tmp_path / "out" / "scores.csv")
    assert [row["case"] for row in rows] == list(NAMES)
    assert [row["class"] for row in rows] == ["benign", "benign", "malignant", ""]
    assert list(rows[0]) == [
        "case", "class", "height", "width", "tp", "fp", "fn", "tn", *SCORES, "ece", "hd95", "surface_dice",
    ]  # fmt: skip
    assert (rows[0]["height"], rows[0]["width"]) == ("96", "128")
    assert [float(row["iou"]) for row in rows] == evaluation.per_image()["iou"].tolist()  # to the last bit
    assert (rows[3]["sensitivity"], rows[3]["iou"], rows[3]["hd95"], rows[3]["surface_dice"]) == ("", "1.0", "0.0", "1.0")
    assert float(rows[1]["hd95"]) == pytest.approx(6, abs=1)
    assert float(rows[2]["hd95"]) > 60


def test_summary(dataset):
    evaluation = evaluate(brightness(), Layout.open(dataset), NAMES, surface=True)
    summary = evaluation.summary()
    iou = evaluation.per_image()["iou"]
    assert summary["n"] == 4
    assert summary["per_image"]["iou"] == pytest.approx(iou.mean())
    assert set(SCORES) <= set(summary["per_image"])
    assert summary["per_image_over"]["sensitivity"] == 3
    assert set(summary["pooled"]) == set(SCORES)
    tp, fp, fn = (getattr(evaluation.counts, key).sum() for key in ("tp", "fp", "fn"))
    assert summary["pooled"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert summary["share_iou_below_0.1"] == 0.25
    low, high = summary["intervals"]["iou"]
    assert low < iou.mean() < high
    assert summary["intervals"]["drawn"] == 4
    assert evaluation.summary(groups=["a", "a", "b", "b"])["intervals"]["drawn"] == 2
    json.dumps(summary, allow_nan=False)


def test_every_mean_has_its_interval_and_empty_masks_are_counted(dataset):
    evaluation = evaluate(brightness(), Layout.open(dataset), NAMES, surface=True)
    summary = evaluation.summary()
    assert set(summary["intervals"]) == {"level", "drawn", *summary["per_image"]}
    for name, mean in summary["per_image"].items():
        low, high = summary["intervals"][name]
        assert low <= mean <= high
    # of three images with a defined sensitivity, of which one is 0: the lowest of the resampled means is 0
    assert summary["intervals"]["sensitivity"][0] == 0
    assert summary["empty"] == {"truth": 1, "prediction": 1, "both": 1}
    (bins,) = summary["reliability"].values()
    assert (len(bins), bins[0]["low"], bins[-1]["high"]) == (15, 0, 1)
    assert sum(one["pixels"] for one in bins) == sum(height * width for height, width in evaluation.sizes)
    assert bins[0]["probability"] < 0.01 and bins[-1]["probability"] > 0.99
    gap = sum(one["pixels"] * abs(one["probability"] - one["positive"]) for one in bins if one["pixels"])
    assert gap / sum(one["pixels"] for one in bins) == pytest.approx(summary["ece_pooled"])
    assert [one["positive"] for one in bins if not one["pixels"]] == [None] * sum(one["pixels"] == 0 for one in bins)


def test_patients_stand_in_the_table_where_they_are_known(dataset, tmp_path):
    assert "patient" not in evaluate(brightness(), Layout.open(dataset), NAMES).table()[0]
    (dataset / "cases.csv").write_text("case,patient\n" + "".join(f"{name},p{n // 2}\n" for n, name in enumerate(NAMES)))
    evaluate(brightness(), Layout.open(dataset), NAMES).write(tmp_path / "scores.csv")
    assert [row["patient"] for row in rows_of(tmp_path / "scores.csv")] == ["p0", "p0", "p1", "p1"]


def test_infinite_distances_are_left_out_of_the_mean_and_counted_in_the_median(dataset):
    for name in NAMES[:3]:
        write_image(dataset / "images" / f"{name}.png", np.full(read_mask(dataset / f"masks/0/{name}.png").shape, 20, np.uint8))
    evaluation = evaluate(brightness(), Layout.open(dataset), NAMES, surface=True)
    assert evaluation.hd95[:, 0].tolist() == [math.inf, math.inf, math.inf, 0]
    summary = evaluation.summary()
    assert (summary["per_image"]["hd95"], summary["per_image_over"]["hd95"], summary["hd95_median"]) == (0, 1, None)
    assert summary["per_image"]["precision"] is None
    assert [row[evaluation.table()[0].index("hd95")] for row in evaluation.table()[1]] == ["inf", "inf", "inf", "0.0"]


def test_calibration_is_of_the_probabilities(dataset):
    segmenter = brightness()
    evaluation = evaluate(segmenter, Layout.open(dataset), NAMES)
    name = NAMES[1]
    probability = segmenter(dataset / "images" / f"{name}.png").probability.astype(np.float64).ravel()
    truth = read_mask(dataset / "masks/0" / f"{name}.png").ravel()
    expected = 0.0
    for i in range(15):
        inside = (probability >= i / 15) & ((probability < (i + 1) / 15) | (i == 14))
        expected += abs(probability[inside].sum() - truth[inside].sum()) / len(truth)
    assert evaluation.ece[1, 0] == pytest.approx(expected, rel=1e-6)
    pixels = sum(height * width for height, width in evaluation.sizes)
    assert int(evaluation.reliability[0].pixels.sum()) == pixels


def test_several_classes(dataset, tmp_path):
    segmenter = brightness(("lesion", "rest"))
    evaluation = evaluate(segmenter, Layout.open(with_second_class(dataset)), NAMES)
    assert evaluation.counts.shape == (4, 2)
    evaluation.write(tmp_path / "scores.csv")
    rows = rows_of(tmp_path / "scores.csv")
    assert float(rows[1]["iou"]) == pytest.approx((float(rows[1]["iou_lesion"]) + float(rows[1]["iou_rest"])) / 2)
    assert int(rows[1]["tp_lesion"]) == int(rows[1]["tn_rest"])
    assert "tp" not in rows[0]
    summary = evaluation.summary()
    assert [one["per_image"]["iou"] for one in summary["classes"]] == pytest.approx(
        [np.mean([float(row[f"iou_{label}"]) for row in rows]) for label in ("lesion", "rest")]
    )
    assert summary["per_image"]["iou"] == pytest.approx(np.mean([float(row["iou"]) for row in rows]))


def test_background_is_not_measured(dataset):
    alone = evaluate(brightness(), Layout.open(dataset), NAMES)
    segmenter = brightness(("lesion", "background"), activation="softmax")
    beside = evaluate(segmenter, Layout.open(with_second_class(dataset)), NAMES, surface=True)
    assert beside.classes == ("lesion",)
    assert beside.hd95.shape == (4, 1)
    assert beside.table()[0][:8] == alone.table()[0][:8]
    np.testing.assert_array_equal(beside.counts.tp, alone.counts.tp)


def test_a_broken_case_is_reported_and_the_others_done(dataset):
    (dataset / "images/benign (1).png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (dataset / "masks/0/malignant (1).png").unlink()
    write_mask(dataset / "masks/0/case7.png", np.zeros((64, 65), bool))
    evaluation = evaluate(brightness(), Layout.open(dataset), NAMES)
    assert evaluation.cases == ("benign (2)",)
    reasons = dict(evaluation.failures)
    assert set(reasons) == {"benign (1)", "malignant (1)", "case7"}
    assert "no mask" in reasons["malignant (1)"]
    assert "64 x 65" in reasons["case7"]
    assert [failure["case"] for failure in evaluation.summary()["failures"]] == list(reasons)


def test_wrong_calls_are_named(dataset):
    layout = Layout.open(dataset)
    with pytest.raises(InputError, match="2 classes"):
        evaluate(brightness(("a", "b")), layout, NAMES)
    with pytest.raises(UsageError, match="'half'"):
        evaluate(brightness(), layout, NAMES, at="half")
    with pytest.raises(UsageError, match="no case"):
        evaluate(brightness(), layout, [])
    with pytest.raises(UsageError, match="-1"):
        evaluate(brightness(), layout, NAMES, surface=True, tolerance=-1)
    for name in NAMES:
        (dataset / "masks/0" / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 4 cases.*empty"):
        evaluate(brightness(), Layout.open(dataset), NAMES)


def test_evaluation_needs_neither_torch_nor_scipy():
    code = "import sys, cmunext.benchmark.evaluate; print(sorted({'torch', 'scipy', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
