"""Measures of lesions, against analytic shapes and against SciPy's labelling and plain NumPy sums."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cmunext.errors import UsageError
from cmunext.inference.lesions import measure


def ellipse(size: tuple[int, int], centre: tuple[float, float], half: tuple[float, float], degrees: float) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    x, y = x - centre[0], y - centre[1]
    turn = math.radians(degrees)
    along, beside = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return (along / half[0]) ** 2 + (beside / half[1]) ** 2 <= 1


def perimeter_of_ellipse(a: float, b: float) -> float:
    turn = np.linspace(0, 2 * np.pi, 200_001)
    return float(np.hypot(np.diff(a * np.cos(turn)), np.diff(b * np.sin(turn))).sum())


def only(mask: np.ndarray, **arguments):
    (lesion,) = measure(mask, mask.astype(np.float32), **arguments)
    return lesion


@pytest.mark.parametrize("degrees", [0, 25, 90, -40])
def test_an_ellipse(degrees: float) -> None:
    lesion = only(ellipse((200, 300), (140.3, 97.6), (60, 25), degrees))
    assert lesion.area == pytest.approx(math.pi * 60 * 25, rel=0.005)
    assert lesion.centroid == pytest.approx((140.3, 97.6), abs=0.1)
    assert lesion.major_axis == pytest.approx(120, rel=0.005)
    assert lesion.minor_axis == pytest.approx(50, rel=0.01)
    assert math.remainder(lesion.angle - degrees, 180) == pytest.approx(0, abs=0.5)
    assert -90 < lesion.angle <= 90
    assert lesion.perimeter == pytest.approx(perimeter_of_ellipse(59.5, 24.5), rel=0.015)  # through the centres of border pixels
    assert lesion.equivalent_diameter == pytest.approx(2 * math.sqrt(60 * 25), rel=0.005)


@pytest.mark.parametrize("radius", [12, 30, 75])
def test_a_disc(radius: int) -> None:
    lesion = only(ellipse((200, 200), (99, 101), (radius, radius), 0))
    assert lesion.major_axis == pytest.approx(2 * radius, rel=0.03)
    assert lesion.minor_axis == pytest.approx(lesion.major_axis, rel=0.001)
    assert lesion.perimeter == pytest.approx(2 * math.pi * (radius - 0.5), rel=0.03)
    assert lesion.box == (99 - radius, 101 - radius, 2 * radius + 1, 2 * radius + 1)


def test_a_rectangle_has_the_moments_of_a_continuous_one() -> None:
    mask = np.zeros((50, 80), bool)
    mask[10:22, 30:70] = True
    lesion = only(mask)
    assert (lesion.area, lesion.box, lesion.centroid) == (480, (30, 10, 40, 12), (49.5, 15.5))
    assert lesion.major_axis == pytest.approx(4 * 40 / math.sqrt(12), rel=1e-12)
    assert lesion.minor_axis == pytest.approx(4 * 12 / math.sqrt(12), rel=1e-12)
    assert lesion.angle == 0
    assert lesion.perimeter == pytest.approx(0.980 * 2 * (39 + 11) - 4 * 0.091, rel=1e-12)


@pytest.mark.parametrize(("height", "width", "angle"), [(30, 7, 90), (7, 30, 0), (7, 7, 0), (31, 31, 0), (1, 9, 0), (9, 1, 90)])
def test_the_angle_of_an_upright_region_is_exact(height: int, width: int, angle: float) -> None:
    mask = np.zeros((50, 60), bool)
    mask[11 : 11 + height, 13 : 13 + width] = True
    (lesion,) = measure(mask, mask.astype(np.float32))
    assert lesion.angle == angle


def test_single_pixels_and_lines() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 5] = True
    lesion = only(mask)
    assert (lesion.area, lesion.box, lesion.centroid, lesion.perimeter, lesion.angle) == (1, (5, 4, 1, 1), (5.0, 4.0), 0.0, 0.0)
    assert lesion.major_axis == pytest.approx(4 / math.sqrt(12))
    mask[4, 1:8] = True
    assert only(mask).perimeter == pytest.approx(0.980 * 12 - 2 * 0.091)


def test_millimetres_are_the_measures_of_the_picture_drawn_with_square_pixels() -> None:
    # One ellipse, 30 mm by 14 mm at 30 degrees, once with pixels of 0.1 mm, once with pixels of 0.1 mm across and 0.2 mm down.
    fine = only(ellipse((300, 400), (200, 150), (150, 70), 30), spacing=(0.1, 0.1))
    y, x = np.mgrid[:150, :400].astype(float)
    turn = math.radians(30)
    x, y = (x - 200) * 0.1, (y - 75) * 0.2
    along, beside = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    flat = only((along / 15) ** 2 + (beside / 7) ** 2 <= 1, spacing=(0.2, 0.1))
    for lesion in (fine, flat):
        assert lesion.area_mm2 == pytest.approx(math.pi * 15 * 7, rel=0.005)
        assert lesion.major_axis_mm == pytest.approx(30, rel=0.005)
        assert lesion.minor_axis_mm == pytest.approx(14, rel=0.005)
        assert lesion.perimeter_mm == pytest.approx(perimeter_of_ellipse(15, 7), rel=0.02)
        assert lesion.equivalent_diameter_mm == pytest.approx(2 * math.sqrt(15 * 7), rel=0.005)
    assert fine.perimeter_mm == pytest.approx(0.1 * fine.perimeter, rel=1e-12)
    assert flat.area * 2 == pytest.approx(fine.area, rel=0.01)


def test_against_scipy_on_random_blobs() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(3)
    probability = ndimage.gaussian_filter(random.random((160, 200)), 3).astype(np.float32)
    probability = (probability - probability.min()) / np.ptp(probability)
    mask = probability > 0.6
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    lesions = measure(mask, probability, class_index=2)
    assert len(lesions) == count > 10
    assert [lesion.area for lesion in lesions] == sorted((lesion.area for lesion in lesions), reverse=True)
    boxes = ndimage.find_objects(labels)
    for lesion in lesions:
        x, y, width, height = lesion.box
        (label,) = {index + 1 for index, box in enumerate(boxes) if box == np.s_[y : y + height, x : x + width]}
        assert lesion.class_index == 2
        assert lesion.area == ndimage.sum_labels(mask, labels, label)
        row, column = ndimage.center_of_mass(mask, labels, label)
        assert lesion.centroid == pytest.approx((column, row), rel=1e-9)
        assert lesion.mean_probability == pytest.approx(ndimage.mean(probability, labels, label), rel=1e-5)
        rows, columns = np.nonzero(labels == label)
        covariance = np.cov(np.stack([columns, rows]), bias=True) + np.eye(2) / 12 if len(rows) > 1 else np.eye(2) / 12
        values, vectors = np.linalg.eigh(covariance)
        assert (lesion.minor_axis, lesion.major_axis) == pytest.approx(4 * np.sqrt(values), rel=1e-9)
        direction = np.array([math.cos(math.radians(lesion.angle)), math.sin(math.radians(lesion.angle))])
        assert abs(direction @ vectors[:, 1]) == pytest.approx(1, abs=1e-6) or values[0] == pytest.approx(values[1])


def test_touching_at_a_corner_is_connected_and_holes_do_not_lengthen_the_border() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:5, 2:5] = mask[5:8, 5:8] = True
    assert len(measure(mask, mask.astype(np.float32))) == 1
    solid = np.zeros((20, 20), bool)
    solid[3:16, 4:15] = True
    ring = solid.copy()
    ring[7:11, 7:11] = False
    assert only(ring).perimeter == only(solid).perimeter
    assert only(ring).area == only(solid).area - 16


def test_where_a_region_lies_in_the_picture_changes_nothing_but_its_place() -> None:
    random = np.random.default_rng(5)
    blobs = random.random((40, 50)) > 0.8  # many regions, many of equal area
    probability = random.random((40, 50), dtype=np.float32)
    whole = measure(blobs, probability)
    assert len({lesion.area for lesion in whole}) < len(whole) / 3
    for top, left in ((20, 30), (60, 150), (0, 150), (60, 0)):
        mask, larger = np.zeros((100, 200), bool), np.zeros((100, 200), np.float32)
        mask[top : top + 40, left : left + 50], larger[top : top + 40, left : left + 50] = blobs, probability
        for moved, lesion in zip(measure(mask, larger), whole, strict=True):
            x, y, *size = lesion.box
            assert moved.box == (x + left, y + top, *size)
            assert moved.centroid == pytest.approx((lesion.centroid[0] + left, lesion.centroid[1] + top), rel=1e-12)
            assert replace(moved, box=lesion.box, centroid=lesion.centroid) == lesion


@pytest.mark.parametrize(("top", "left"), [(20, 30), (21, 30), (20, 31), (21, 31)])
def test_regions_of_equal_area_come_in_the_order_in_which_the_whole_picture_is_labelled(top: int, left: int) -> None:
    mask = np.zeros((100, 200), bool)
    mask[top : top + 40, left : left + 50] = np.random.default_rng(5).random((40, 50)) > 0.8
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    expected = sorted(boxes[1:].tolist(), key=lambda box: -box[cv2.CC_STAT_AREA])
    assert [[*lesion.box, lesion.area] for lesion in measure(mask, mask.astype(np.float32))] == expected


def test_nothing_is_no_lesion_and_millimetres_need_a_spacing() -> None:
    empty = np.zeros((9, 9), bool)
    assert measure(empty, empty.astype(np.float32)) == []
    record = only(~empty).to_dict()
    assert record["area_mm2"] is None
    assert record["box"] == (0, 0, 9, 9)


@pytest.mark.parametrize("spacing", [(0, 0.1), (0.1, -1), (math.nan, 0.1), (0.1, math.inf)])
def test_a_spacing_must_be_positive(spacing: tuple[float, float]) -> None:
    mask = np.ones((9, 9), bool)
    with pytest.raises(UsageError, match="spacing"):
        measure(mask, mask.astype(np.float32), spacing=spacing)
