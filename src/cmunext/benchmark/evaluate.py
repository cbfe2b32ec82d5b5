"""Measuring weights, or masks that are there, on a list of cases: image -> logits -> mask -> counts -> scores.

The road from image to mask is the one that `cmunext segment` takes. A case that cannot be read is reported, the others are done.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.predicted import MaskFolder, common_classes, predicted
from cmunext.benchmark.scores import Evaluation, Size
from cmunext.benchmark.statistics import Reliability
from cmunext.data.dataset import original_of, read_case, resize_mask
from cmunext.data.layout import Layout
from cmunext.data.table import PATIENT_COLUMN, class_of, dataset_table
from cmunext.errors import InputError, UsageError
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import image_digest, measured_classes
from cmunext.metrics import Counts, count


def evaluate(
    source: Segmenter | MaskFolder,
    layout: Layout,
    names: Sequence[str],
    *,
    at: Size = "native",
    surface: bool = False,
    tolerance: float = 2.0,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Evaluation:
    """Measure weights, or a folder of masks, on cases of a dataset.

    Parameters
    ----------
    source : the weights or masks. A class named "background" beside others is not measured. Masks have no probabilities, and so no
        calibration.
    layout, names : the dataset, and which of its cases.
    at : "native" compares at the size of the image; "network" brings the truth to the network's size with `cv2.INTER_NEAREST`
        and compares there, as the paper does.
    surface : also HD95 and surface Dice (needs SciPy; ModuleNotFoundError without it).
    tolerance : of surface Dice, pixels at the size of comparison.
    track : wraps the names, for a progress bar.

    Raises
    ------
    UsageError : an unknown `at`, or "network" for masks; no names, or a negative tolerance.
    InputError : weights or masks and dataset differ in their classes, or no case could be measured.
    """
    if at not in ("native", "network"):
        raise UsageError(f"the size of comparison is {at!r}; it must be native or network")
    if at == "network" and isinstance(source, MaskFolder):
        raise UsageError("the size of comparison is network, and masks have none; compare them at native size")
    if not names:
        raise UsageError("there is no case to measure; give at least one name")
    classes = common_classes(source, layout)
    measure_surface = _surface_measure(tolerance) if surface else None
    table = dataset_table(layout.root)
    measured: list[tuple[str, _Measured]] = []
    failures: list[tuple[str, str]] = []
    for name in track(names):
        try:
            measured.append((name, _measure(source, layout, name, original_of(name, table), at, measure_surface)))
        except (InputError, OSError) as error:
            failures.append((name, str(error)))
    if not measured:
        raise InputError(f"none of the {len(names)} cases could be measured; the first: {failures[0][1]}")

    results = [result for _, result in measured]
    known = None if isinstance(source, MaskFolder) else source.metadata.learnt_from
    told = all(result.reliability for result in results)
    kept = measured_classes(classes)
    surfaces = np.array([result.surface for result in results])[:, kept] if surface else None  # N x K x 2
    return Evaluation(
        cases=tuple(name for name, _ in measured),
        kinds=tuple(class_of(name, table.get(name, {})) for name, _ in measured),
        patients=tuple(table.get(name, {}).get(PATIENT_COLUMN, "") for name, _ in measured),
        sizes=tuple(result.size for result in results),
        classes=tuple(classes[k] for k in kept),
        counts=Counts.stack([result.counts[kept] for result in results]),
        ece=np.array([[result.reliability[k].expected_calibration_error for k in kept] for result in results]) if told else None,
        reliability=tuple(_sum(result.reliability[k] for result in results) for k in kept if told),
        hd95=None if surfaces is None else surfaces[..., 0],
        surface_dice=None if surfaces is None else surfaces[..., 1],
        failures=tuple(failures),
        at=at,
        learnt_from=None if known is None else sum(result.digest in known for result in results),
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    digest: str
    size: tuple[int, int]
    counts: Counts  # of (K,)
    reliability: tuple[Reliability, ...]  # of each class, or nothing
    surface: tuple[tuple[float, float], ...]  # (hd95, surface dice) of each class, or nothing


_SurfaceMeasure = Callable[[NDArray[np.bool_], NDArray[np.bool_]], tuple[float, float]]


def _measure(
    source: Segmenter | MaskFolder, layout: Layout, name: str, original: str, at: Size, surface: _SurfaceMeasure | None
) -> _Measured:
    image, truth = read_case(layout, name)
    if at == "network" and isinstance(source, Segmenter):
        resized = resize_mask(truth.transpose(1, 2, 0).astype(np.uint8), source.preprocessing, cv2.INTER_NEAREST)  # KHW -> HWK
        truth = resized.transpose(2, 0, 1).astype(bool)  # HWK -> KHW
    height, width = truth.shape[1:]
    mask, probability = predicted(source, name, image, (height, width))
    return _Measured(
        original or image_digest(image),
        (height, width),
        count(mask, truth),
        () if probability is None else tuple(Reliability.of(p, t) for p, t in zip(probability, truth, strict=True)),
        tuple(surface(m, t) for m, t in zip(mask, truth, strict=True)) if surface else (),
    )


def _surface_measure(tolerance: float) -> _SurfaceMeasure:
    from cmunext.benchmark.surface import hd95_of, surface_dice_of, surface_distances  # SciPy, only where it is asked for

    surface_dice_of(np.empty(0), np.empty(0), tolerance)  # refuses a bad tolerance before any case is read

    def measure(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
        distances = surface_distances(prediction, truth)
        return hd95_of(*distances), surface_dice_of(*distances, tolerance)

    return measure


def _sum(parts: Iterable[Reliability]) -> Reliability:
    first, *rest = parts
    for part in rest:
        first = first + part
    return first
