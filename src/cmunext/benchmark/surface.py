"""Distances between the outlines of two masks: HD95 and surface Dice. Needs SciPy.

An outline is the mask's pixels of which one of the four neighbours is outside; beyond the image counts as outside. Distances run
between pixel centres, in pixels (or in the unit of `spacing`).

Empty masks: two empty masks agree (HD95 0, surface Dice 1); an empty and a non-empty one are infinitely far apart
(HD95 inf, surface Dice 0).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from cmunext.errors import InputError, UsageError


def outline(mask: ArrayLike) -> NDArray[np.bool_]:
    """The outline's pixels: bool H x W -> bool H x W."""
    mask = np.asarray(mask, bool)
    return mask & ~binary_erosion(mask)


def surface_distances(
    prediction: ArrayLike, truth: ArrayLike, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each outline pixel of one mask to the nearest outline pixel of the other.

    Parameters
    ----------
    prediction, truth : bool H x W.
    spacing : height and width of a pixel; (1, 1) gives distances in pixels.

    Returns
    -------
    (prediction to truth, truth to prediction), 1-D, one value an outline pixel; inf where the other mask is empty.
    """
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise InputError(f"the masks are of {prediction.shape} and {truth.shape}; give two of one H x W")
    if min(spacing) <= 0:
        raise UsageError(f"the pixel spacing is {spacing}; both must be positive")
    either = prediction | truth
    rows, columns = (np.flatnonzero(either.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.empty(0), np.empty(0)
    # Beyond the common box both masks are empty, as they are beyond the image: the outlines are the same, the transforms quicker
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    predicted, wanted = outline(prediction[box]), outline(truth[box])
    return _distances(predicted, wanted, spacing), _distances(wanted, predicted, spacing)


def hd95(prediction: ArrayLike, truth: ArrayLike, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """95th percentile Hausdorff distance of two bool H x W: the larger of the two directed 95th percentiles. 0 is perfect."""
    return hd95_of(*surface_distances(prediction, truth, spacing))


def surface_dice(
    prediction: ArrayLike, truth: ArrayLike, tolerance: float = 2.0, spacing: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Normalised surface Dice of two bool H x W (Nikolov et al. 2018): the share of both outlines within `tolerance`."""
    return surface_dice_of(*surface_distances(prediction, truth, spacing), tolerance)


def hd95_of(from_prediction: NDArray[np.float64], from_truth: NDArray[np.float64]) -> float:
    """HD95 of the two results of `surface_distances`."""
    if not len(from_prediction) or not len(from_truth):
        return math.inf if len(from_prediction) + len(from_truth) else 0.0
    return float(max(np.percentile(from_prediction, 95), np.percentile(from_truth, 95)))


def surface_dice_of(from_prediction: NDArray[np.float64], from_truth: NDArray[np.float64], tolerance: float = 2.0) -> float:
    """Surface Dice of the two results of `surface_distances`."""
    if not tolerance >= 0:
        raise UsageError(f"the tolerance is {tolerance}; it must be 0 or more")
    total = len(from_prediction) + len(from_truth)
    within = np.count_nonzero(from_prediction <= tolerance) + np.count_nonzero(from_truth <= tolerance)
    return within / total if total else 1.0


def _distances(start: NDArray[np.bool_], end: NDArray[np.bool_], spacing: tuple[float, float]) -> NDArray[np.float64]:
    if not end.any():
        return np.full(np.count_nonzero(start), math.inf)
    return distance_transform_edt(~end, sampling=spacing)[start]
