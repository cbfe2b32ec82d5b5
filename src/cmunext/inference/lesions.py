"""What a mask holds, measured: a record for each connected region, in pixels and, where the spacing is known, millimetres."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError

Spacing = tuple[float, float]  # millimetres from a pixel to the next: down, across


@dataclass(frozen=True)
class Lesion:
    """One connected region of a mask. Coordinates count from the centre of the top left pixel, x to the right, y downwards.

    Attributes
    ----------
    class_index : channel of the mask in which it lies.
    area : pixels.
    box : the smallest (x, y, width, height) that holds it, pixels.
    centroid : mean (x, y) of its pixels.
    major_axis, minor_axis : full lengths of the axes of the ellipse with the region's second moments (each pixel taken as a unit
        square), pixels.
    angle : of the major axis, in degrees above -90 and up to 90: 0 along x, positive where it sinks to the right.
    perimeter : length of the outer border through the centres of its pixels, pixels. Holes do not count.
    equivalent_diameter : of the circle of the same area, pixels.
    mean_probability : over its pixels.
    area_mm2, major_axis_mm, minor_axis_mm, perimeter_mm, equivalent_diameter_mm : the same in millimetres; None where the
        spacing is not known.
    """

    class_index: int
    area: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    major_axis: float
    minor_axis: float
    angle: float
    perimeter: float
    equivalent_diameter: float
    mean_probability: float
    area_mm2: float | None = None
    major_axis_mm: float | None = None
    minor_axis_mm: float | None = None
    perimeter_mm: float | None = None
    equivalent_diameter_mm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, for JSON."""
        return asdict(self)


def measure(
    mask: NDArray[np.bool_], probability: NDArray[np.float32], class_index: int = 0, spacing: Spacing | None = None
) -> list[Lesion]:
    """Measure the 8-connected regions of one class, the largest first.

    Parameters
    ----------
    mask : bool H x W.
    probability : float H x W in [0, 1].
    class_index : noted in the records.
    spacing : (down, across) in millimetres a pixel, or None.

    Raises UsageError when a spacing is not a positive number.
    """
    if spacing is not None and not _is_spacing(spacing):
        raise UsageError(f"spacing is {spacing}; give two positive numbers (down, across) of millimetres a pixel")
    left, top, across, down = cv2.boundingRect(mask.view(np.uint8))
    left, top = left - left % 2, top - top % 2  # OpenCV numbers regions by blocks of 2 x 2, and equal areas keep its order
    occupied = mask[top : top + down + 1, left : left + across + 1].view(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(occupied, connectivity=8)
    lesions = []
    for label in range(1, count):
        x, y, width, height = (int(value) for value in boxes[label, : cv2.CC_STAT_AREA])
        region = labels[y : y + height, x : x + width] == label
        x, y = left + x, top + y
        lesions.append(_measure_region(region, (x, y), probability[y : y + height, x : x + width], class_index, spacing))
    return sorted(lesions, key=lambda lesion: -lesion.area)


def _is_spacing(value: object) -> bool:
    if not isinstance(value, Sequence | np.ndarray) or len(value) != 2:
        return False
    return all(isinstance(step, (int, float, np.number)) and math.isfinite(step) and step > 0 for step in value)


def _measure_region(
    region: NDArray[np.bool_],
    corner: tuple[int, int],
    probability: NDArray[np.float32],
    class_index: int,
    spacing: Spacing | None,
) -> Lesion:
    sums = cv2.moments(region.view(np.uint8))  # of whole numbers, so exact
    area, x, y, xx, xy, yy = (int(sums[name]) for name in ("m00", "m10", "m01", "m20", "m11", "m02"))
    centroid = x / area, y / area
    spread = np.array([[xx * area - x * x, xy * area - x * y], [xy * area - x * y, yy * area - y * y]], np.float64)
    moments = spread / area**2 + np.eye(2) / 12  # 1/12: of a unit square
    border = _border(region)
    major, minor = _axes(moments)
    return Lesion(
        class_index=class_index,
        area=area,
        box=(*corner, region.shape[1], region.shape[0]),
        centroid=(float(centroid[0] + corner[0]), float(centroid[1] + corner[1])),
        major_axis=major,
        minor_axis=minor,
        angle=_angle(moments),
        perimeter=_perimeter(border),
        equivalent_diameter=_diameter(area),
        mean_probability=float(probability[region].mean(dtype=np.float64)),
        **({} if spacing is None else _in_millimetres(area, moments, border, spacing)),
    )


def _in_millimetres(area: int, moments: NDArray[np.float64], border: NDArray[np.float64], spacing: Spacing) -> dict[str, float]:
    down, across = spacing
    major, minor = _axes(moments * np.outer((across, down), (across, down)))
    return {
        "area_mm2": area * down * across,
        "major_axis_mm": major,
        "minor_axis_mm": minor,
        "perimeter_mm": _perimeter(border) * _millimetres_along(border, spacing),
        "equivalent_diameter_mm": _diameter(area * down * across),
    }


def _axes(moments: NDArray[np.float64]) -> tuple[float, float]:
    """Axes of an ellipse from its second central moments, which are a quarter of the squared half axes."""
    minor, major = 4 * np.sqrt(np.maximum(np.linalg.eigvalsh(moments), 0))
    return float(major), float(minor)


def _angle(moments: NDArray[np.float64]) -> float:
    return math.degrees(math.atan2(2 * moments[0, 1] + 0.0, moments[0, 0] - moments[1, 1])) / 2  # + 0.0: -0.0 would give -90


def _diameter(area: float) -> float:
    return 2 * math.sqrt(area / math.pi)


def _border(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The centres of the pixels met on a walk along the outer border, from neighbour to neighbour: N x 2 (x, y)."""
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return max(contours, key=len).reshape(-1, 2).astype(np.float64)


def _perimeter(border: NDArray[np.float64]) -> float:
    """Length of a border, pixels, by the corner count method, which hardly errs for smooth outlines of any direction.

    0.980 straight steps + 1.406 diagonal steps - 0.091 corners: Vossepoel and Smeulders, Computer Graphics and Image Processing
    20 (1982) 347.
    """
    steps = _steps(border)
    if not steps.any():
        return 0.0  # a single pixel
    diagonal = np.count_nonzero(steps.all(axis=1))
    corners = np.count_nonzero((steps != np.roll(steps, 1, axis=0)).any(axis=1))
    return float(0.980 * (len(steps) - diagonal) + 1.406 * diagonal - 0.091 * corners)


def _millimetres_along(border: NDArray[np.float64], spacing: Spacing) -> float:
    """How long a pixel's length of this border is: between the two spacings, by the directions in which it runs.

    The corner count is only right for square pixels; the directions are told by the border averaged over five pixels.
    """
    down, across = spacing
    averaged = np.mean([np.roll(border, shift, axis=0) for shift in range(-2, 3)], axis=0)
    steps = _steps(averaged)
    length = np.hypot(*steps.T).sum()
    return float(np.hypot(*(steps * (across, down)).T).sum() / length) if length > 0 else (down + across) / 2


def _steps(border: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.roll(border, -1, axis=0) - border
