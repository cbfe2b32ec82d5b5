"""What is done fast on the way from an image to its files gives what the plain formulas give, bit for bit, on real images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cmunext.image.files import find_images, read_image
from cmunext.image.overlay import COLOURS, _label
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.lesions import _measure_region
from cmunext.inference.named_weights import weight_names
from cmunext.inference.results import segment_files
from cmunext.inference.segmenter import Segmenter

IMAGES = 20


def plain_input(preprocessing: Preprocessing, image: np.ndarray) -> np.ndarray:
    """Three channels from the start, resized together, scaled as real numbers."""
    colour = image if image.ndim == 3 else np.dstack([image] * 3)
    if preprocessing.channels == "bgr":
        colour = np.ascontiguousarray(colour[..., ::-1])
    scale, offset = preprocessing.scale_and_offset
    return (cv2.resize(colour, (preprocessing.width, preprocessing.height)).astype(np.float32) * scale + offset).transpose(
        2, 0, 1
    )


def plain_lesions(mask: np.ndarray, probability: np.ndarray, spacing: tuple[float, float]) -> list[dict]:
    """Regions labelled over the whole picture."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    lesions = []
    for label, (x, y, width, height, _) in zip(range(1, count), boxes[1:].tolist(), strict=True):
        window = np.s_[y : y + height, x : x + width]
        lesions.append(_measure_region(labels[window] == label, (x, y), probability[window], 0, spacing).to_dict())
    return sorted(lesions, key=lambda lesion: -lesion["area"])


def plain_overlay(image: np.ndarray, mask: np.ndarray, lesions: list[dict]) -> np.ndarray:
    """Mixed as real numbers, over the whole picture."""
    picture = image.copy() if image.ndim == 3 else np.dstack([image] * 3)
    width = max(1.0, min(image.shape[:2]) / 250)
    picture[mask] = np.round(0.8 * picture[mask] + 0.2 * np.array(COLOURS[0]))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for level, extra, colour in ((110, 2, (0, 0, 0)), (255, 0, COLOURS[0])):
        coverage = np.zeros(mask.shape, np.uint8)
        cv2.drawContours(coverage, contours, -1, level, round(width) + extra, cv2.LINE_AA)
        share = coverage[..., None] / 255
        picture = np.round((1 - share) * picture + share * np.array(colour)).astype(np.uint8)
    for number, lesion in enumerate(lesions if len(lesions) > 1 else (), 1):
        _label(picture, str(number), lesion["centroid"], width)
    return picture


@pytest.mark.skipif("cmunext-s-busi" not in weight_names(), reason="the bundled weights are not in this installation")
def test_files_of_real_images_hold_what_the_plain_formulas_give(shared: Path, tmp_path: Path) -> None:
    found = find_images([shared / "data" / "busi" / "images"])
    sources = found[:: len(found) // IMAGES][:IMAGES]
    segmenter = Segmenter.load("cmunext-s-busi", "onnxruntime", threads=1)
    results = list(segment_files(segmenter, sources, tmp_path, spacing=(0.1, 0.07)))
    several = 0
    for source, result in zip(sources, results, strict=True):
        image, record = read_image(source), result.record
        assert record is not None, result.error
        batch = plain_input(segmenter.preprocessing, image)[None]
        np.testing.assert_array_equal(segmenter.preprocessing.to_input(image), batch)
        logits = segmenter.predict_batch(np.ascontiguousarray(batch))[0, 0]
        probability = 0.5 * (1 + np.tanh(0.5 * cv2.resize(logits, image.shape[1::-1])))
        mask = probability > segmenter.preprocessing.threshold
        np.testing.assert_array_equal(cv2.imread(record["mask"], cv2.IMREAD_UNCHANGED), mask * np.uint8(255))
        lesions = plain_lesions(mask, probability, (0.1, 0.07))
        assert json.loads(json.dumps(record["lesions"])) == json.loads(json.dumps(lesions))
        np.testing.assert_array_equal(read_image(record["overlay"]), plain_overlay(image, mask, lesions))
        several += len(lesions) > 1
    assert several  # lesions in one of the images at least: their numbers are drawn
    kept = json.loads((tmp_path / "segmentation.json").read_text())
    assert [each["lesions"] for each in kept] == json.loads(
        json.dumps([each.record["lesions"] for each in results if each.record])
    )
