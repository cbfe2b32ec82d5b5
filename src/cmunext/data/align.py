"""Confirming that two images show the same frame: they are laid on each other, and their tissue is compared place by place.

Tissue is what decides, so that images which merely share a scanner's text, scales and frames stay apart: a place that is flat, or that
holds signs on a flat ground, does not count, and half of the others must agree. In each place what is compared is structure of the size
of speckle and strands, freed from brightness and contrast, so that gain and compression change little; marks spoil few places.
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.fingerprint import Fingerprint, Floats, Ints, normalised

CELL = 16  # pixels of a thumbnail: the side of a place
FINE, COARSE = 1.0, 7.0  # Gaussian widths between which lies the structure that is compared, pixels of a thumbnail
FLAT = 3  # grey levels: where the 3 x 3 surroundings span no more, there is no tissue
MIN_CONTRAST = 1.2  # grey levels of the structure, below which there is nothing to compare
GROUND, GROUND_LEVELS, SIGN_LEVELS = 0.35, 8, 64  # signs: that share of a place within so many levels, and others far beyond
MIN_PLACES = 20
MIN_OVERLAP = 0.4  # of the image of which less is seen
# Measured on breast ultrasound (BUSI, BUS-BRA): the copies of a frame in them reach 0.997, made ones (crop, scale, gain, marks and
# compression together) 0.97; successive frames of a sweep 0.91 to 0.98, its further frames 0.54 to 0.86; other patients at most 0.46.
SAME_FRAME = 0.93
GUARD = 0.7  # of it, that the median must reach, so that what all images of a scanner share cannot decide
PROMISING = 0.08  # median before the refinement; below it there is nothing to refine
MIN_MATCHES = 5
TOLERANCE = 4.0  # pixels of a thumbnail, within which a match agrees with an alignment
MAX_ZOOM, MAX_STRETCH, MAX_TURN = 3.0, 1.6, 0.25  # scale; ratio of the two axes' scales; sine of a rotation or shear
TRIALS = 1500


@dataclass(frozen=True)
class Alignment:
    """How one image lies on another.

    Attributes
    ----------
    matrix : float64 2 x 3, takes (x, y, 1) of the first image (mirrored where that was asked), in its own pixels, to the second.
    correlation : of the structure, -1 to 1, that the best third of the places reaches: marks, noise and moving tissue spoil places of
        a copy, but hardly ever two thirds of them.
    median : the same that half of the places reaches.
    overlap : share of the smaller part that both show.
    places : number of places compared.
    """

    matrix: NDArray[np.float64]
    correlation: float
    median: float
    overlap: float
    places: int


def align(first: Fingerprint, second: Fingerprint, similarity: float = SAME_FRAME) -> Alignment | None:
    """Lay the first image on the second, scaled along both axes, shifted and slightly turned; None when they show different frames.

    Parameters
    ----------
    similarity : the correlation to reach, above 0, at most 1.
    """
    start = _from_matches(first, second)
    if start is None:
        return None
    # The image that shows more detail is made smaller to fit the other: made larger, the other would lack that detail.
    swap = abs(np.linalg.det(start[:, :2])) > 1
    if swap:
        first, second, start = second, first, cv2.invertAffineTransform(start)
    found = _compare(first.thumbnail, second.thumbnail, start)
    if found is None or found.median < PROMISING:
        return None
    refined = _refine(first.thumbnail, second.thumbnail, start)
    better = None if refined is None else _compare(first.thumbnail, second.thumbnail, refined)
    if better and better.correlation > found.correlation:
        found = better
    if found.correlation < similarity or found.median < GUARD * similarity:
        return None
    if found.overlap < MIN_OVERLAP or found.places < MIN_PLACES:
        return None
    matrix = _native(found.matrix, first, second)
    return replace(found, matrix=cv2.invertAffineTransform(matrix) if swap else matrix)


def _from_matches(first: Fingerprint, second: Fingerprint) -> NDArray[np.float64] | None:
    """The alignment (scales along both axes and an offset) that most mutually nearest features agree with."""
    if min(len(first.points), len(second.points)) < MIN_MATCHES:
        return None
    similar = normalised(first.descriptors) @ normalised(second.descriptors).T
    nearest = similar.argmax(1)
    mine = np.arange(len(nearest))
    size = second.points[nearest, 2] / first.points[:, 2]
    good = (similar.argmax(0)[nearest] == mine) & (similar[mine, nearest] > 0.8) & (np.abs(np.log2(size)) < np.log2(MAX_ZOOM))
    source, target = first.points[good, :2].astype(np.float64), second.points[nearest[good], :2].astype(np.float64)
    if len(source) < MIN_MATCHES:
        return None
    scale, offset = _hypotheses(source, target)
    if not len(scale):
        return None
    misses = np.hypot(*np.moveaxis(source[None] * scale[:, None] + offset[:, None] - target[None], 2, 0))
    agreeing = misses[np.argmax((misses < TOLERANCE).sum(1))] < TOLERANCE
    if agreeing.sum() < MIN_MATCHES:
        return None
    return _fitted(source[agreeing], target[agreeing])


def _hypotheses(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and offsets, T x 2 each, of random pairs of matches."""
    draw: Ints = np.random.default_rng(0).integers(0, len(source), (TRIALS, 2))
    one, two = draw.T
    span = source[two] - source[one]
    wide = (np.abs(span) > 12).all(1)  # matches too near to each other tell no scale
    one, two, span = one[wide], two[wide], span[wide]
    scale = (target[two] - target[one]) / span
    stretch = scale[:, 0] / np.where(scale[:, 1] == 0, np.inf, scale[:, 1])
    fair = (scale > 1 / MAX_ZOOM).all(1) & (scale < MAX_ZOOM).all(1) & (stretch < MAX_STRETCH) & (stretch > 1 / MAX_STRETCH)
    scale = scale[fair]
    return scale, target[one[fair]] - source[one[fair]] * scale


def _fitted(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares: scales along both axes and an offset."""
    matrix = np.zeros((2, 3))
    for axis in (0, 1):
        around = source[:, axis] - source[:, axis].mean()
        scale = (around @ target[:, axis]) / max(around @ around, 1e-9)
        matrix[axis, axis], matrix[axis, 2] = scale, target[:, axis].mean() - scale * source[:, axis].mean()
    return matrix


def _plausible(matrix: NDArray[np.float64]) -> bool:
    scale = np.diag(matrix[:, :2])
    if (scale < 1 / MAX_ZOOM).any() or (scale > MAX_ZOOM).any():
        return False
    stretch = scale[0] / scale[1]
    turn = np.abs(matrix[[0, 1], [1, 0]]) / scale
    return 1 / MAX_STRETCH < stretch < MAX_STRETCH and bool((turn < MAX_TURN).all())


def _warped(image: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """The image laid on a canvas of height x width, smoothed as far as it is made smaller; and where it covers the canvas."""
    height, width = size
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    smooth = image.astype(np.float32)
    if scale < 0.9:
        smooth = cv2.GaussianBlur(smooth, (0, 0), 0.5 * float(np.sqrt(1 / scale**2 - 1)))
    laid = cv2.warpAffine(smooth, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    covered = cv2.warpAffine(np.full(image.shape, 255, np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST) > 0
    return laid, covered


def _structure(image: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """What is compared, free of brightness and contrast; and where there is something to compare."""
    smooth = cv2.GaussianBlur(image, (0, 0), FINE)
    band = smooth - cv2.GaussianBlur(smooth, (0, 0), COARSE)
    contrast = np.sqrt(cv2.GaussianBlur(band * band, (0, 0), COARSE))
    square = np.ones((3, 3), np.uint8)
    varied = cv2.dilate(image, square) - cv2.erode(image, square) > FLAT
    return band / (contrast + 1), varied & (contrast > MIN_CONTRAST)


def _compare(first: NDArray[np.uint8], second: NDArray[np.uint8], matrix: NDArray[np.float64]) -> Alignment | None:
    """How well thumbnails agree when `matrix` lays the first on the second; None where nothing can be compared."""
    laid, covered = _warped(first, matrix, second.shape)
    one, one_there = _structure(laid)
    two, two_there = _structure(second.astype(np.float32))
    shown = covered.sum()
    overlap = float(shown / min(abs(np.linalg.det(matrix[:, :2])) * first.size, second.size))
    weight = (covered & one_there & two_there).astype(np.float32)
    count = _sums(weight)
    tissue = (count > 0.5 * CELL * CELL) & ~_signs(laid) & ~_signs(second)
    if not tissue.any():
        return None
    count = count[tissue]
    means = [_sums(weight * part)[tissue] / count for part in (one, two)]
    spreads = [_sums(weight * part * part)[tissue] / count - mean**2 for part, mean in zip((one, two), means, strict=True)]
    together = _sums(weight * one * two)[tissue] / count - means[0] * means[1]
    correlations = together / np.sqrt(np.maximum(spreads[0] * spreads[1], 1e-9))
    median, best_third = np.quantile(correlations, (1 / 2, 2 / 3)).tolist()
    return Alignment(matrix, best_third, median, min(overlap, 1.0), len(correlations))


def _sums(values: Floats) -> Floats:
    """Sums over places."""
    return _places(values).sum(2)


def _places(values: NDArray[Any]) -> NDArray[Any]:
    """H x W as rows x columns of places x their pixels; what is left over at the right and at the bottom is dropped."""
    rows, columns = values.shape[0] // CELL, values.shape[1] // CELL
    cut = values[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return cut.swapaxes(1, 2).reshape(rows, columns, CELL * CELL)


def _signs(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Places that hold letters, lines or scales: much of one level, the darkest or the brightest there, and something that stands out."""
    pixels = CELL * CELL
    ranks = (2, int(GROUND * pixels), int((1 - GROUND) * pixels), pixels - 3)  # the outermost two pixels may be noise
    low, lower, upper, high = np.moveaxis(np.partition(_places(image).astype(np.int16), ranks, axis=2)[..., ranks], 2, 0)
    return (high - low > SIGN_LEVELS) & ((lower - low <= GROUND_LEVELS) | (high - upper <= GROUND_LEVELS))


def _refine(first: NDArray[np.uint8], second: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The affine alignment of highest correlation near `matrix` (ECC; Evangelidis and Psarakis, TPAMI 30 (2008) 1858)."""
    laid, covered = _warped(first, matrix, second.shape)
    one, two = (cv2.GaussianBlur(_structure(image)[0], (0, 0), 2) for image in (laid, second.astype(np.float32)))
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    small = np.eye(2, 3, dtype=np.float32)  # takes the second to the first as it lies
    try:
        _, small = cv2.findTransformECC(two, one, small, cv2.MOTION_AFFINE, stop, covered.astype(np.uint8), 5)
    except cv2.error:  # it did not converge
        return None
    back = np.vstack([small.astype(np.float64), (0, 0, 1)])
    if abs(np.linalg.det(back)) < 1e-3:
        return None
    refined = (np.linalg.inv(back) @ np.vstack([matrix, (0, 0, 1)]))[:2]
    return refined if _plausible(refined) else None


def _native(matrix: NDArray[np.float64], first: Fingerprint, second: Fingerprint) -> NDArray[np.float64]:
    """The alignment of thumbnails as one of the images themselves; the middle of the first pixel is (0, 0) in both."""
    down, up = _to_thumbnail(first), np.linalg.inv(_to_thumbnail(second))
    return (up @ np.vstack([matrix, (0, 0, 1)]) @ down)[:2]


def _to_thumbnail(one: Fingerprint) -> NDArray[np.float64]:
    scale = np.array([one.thumbnail.shape[1] / one.size[1], one.thumbnail.shape[0] / one.size[0]])
    matrix = np.diag([*scale, 1.0])
    matrix[:2, 2] = (scale - 1) / 2
    return matrix
