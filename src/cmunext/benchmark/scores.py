"""What an evaluation found: scores image by image, as a table of cases and as a summary with intervals."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.formats import comma_separated, exact
from cmunext.benchmark.statistics import Reliability, bootstrap_mean
from cmunext.data.table import PATIENT_COLUMN
from cmunext.metrics import SCORES, Counts, average, scores, summarise
from cmunext.storage import write_text

MISS = 0.1  # an image under this IoU is a miss: what was outlined is not the lesion
LEVEL = 0.95  # of the intervals

Size = Literal["native", "network"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, image by image. N cases, K classes, all in the order of the list.

    Attributes
    ----------
    cases : names of the N cases that could be measured.
    kinds : what each case is ("benign", "malignant"), from its name or the dataset's table; "" where neither tells.
    patients : of each case, from the dataset's table; "" where it does not tell.
    sizes : (height, width) at which each was compared, pixels.
    classes : K names.
    counts : pixels, (N, K).
    ece : expected calibration error of each image, (N, K); None where there were masks without probabilities.
    reliability : K, over all pixels of all images; then none.
    hd95, surface_dice : (N, K), pixels and a share; None when they were not asked for.
    failures : (case, sentence) of those that could not be measured.
    at : "native" or "network", the size of comparison.
    learnt_from : how many of the cases' images the weights learnt from; None when they do not say.
    """

    cases: tuple[str, ...]
    kinds: tuple[str, ...]
    patients: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    counts: Counts
    ece: NDArray[np.float64] | None
    reliability: tuple[Reliability, ...]
    hd95: NDArray[np.float64] | None
    surface_dice: NDArray[np.float64] | None
    failures: tuple[tuple[str, str], ...]
    at: Size
    learnt_from: int | None = None

    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Every score of each image, (N,): with several classes the mean over those for which it is defined."""
        return {name: average(values.T)[0] for name, values in self._by_class().items()}

    def lesion_share(self) -> NDArray[np.float64]:
        """The truth's share of each image, (N,), all classes together."""
        return (self.counts.tp + self.counts.fn).sum(1) / np.prod(self.sizes, axis=1)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows, one a case, as text. Undefined is empty; an infinite distance is `inf`.

        One class: `case, class, patient, height, width, tp, fp, fn, tn, iou, ..., ece` (not of masks) and, when asked for, `hd95, surface_dice`;
        `patient` only where the dataset's table tells it.
        Several: the scores are means over the classes, and each class follows with `tp_NAME, ..., ece_NAME`.
        """
        by_class = self._by_class()
        columns: dict[str, Iterable[Any]] = {
            "case": self.cases,
            "class": self.kinds,
            **({PATIENT_COLUMN: self.patients} if any(self.patients) else {}),
            "height": [height for height, _ in self.sizes],
            "width": [width for _, width in self.sizes],
        }
        whole = {name: getattr(self.counts, name) for name in ("tp", "fp", "fn", "tn")}
        if len(self.classes) == 1:
            columns |= {name: values[:, 0] for name, values in (whole | by_class).items()}
        else:
            columns |= self.per_image()
            for k, label in enumerate(self.classes):
                columns |= {f"{name}_{label}": values[:, k] for name, values in (whole | by_class).items()}
        return list(columns), [[exact(value) for value in row] for row in zip(*columns.values(), strict=True)]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `table` as CSV (UTF-8, LF) in one step. Raises OSError, leaving what was there."""
        write_text(path, comma_separated(*self.table()))

    def summary(self, groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Averages and intervals, as values that JSON can hold; undefined is None.

        Parameters
        ----------
        groups : (N,) the cluster (patient, near duplicates) of each case, which the intervals then draw whole. By default each
            image is drawn by itself.

        Returns
        -------
        n, per_image, per_image_over, pooled, classes : as `metrics.summarise`; `per_image` also holds `ece`, and, when asked for,
            `hd95` (over the images where it is finite) and `surface_dice`.
        hd95_median : over all images, those with an infinite distance included; only when asked for.
        ece_pooled : over all pixels of all images, mean over classes; this, and `ece` in per_image, only of weights.
        reliability : {class: bins}, see `Reliability.bins`; empty where there were no probabilities.
        share_iou_below_0.1 : the share of images that are misses.
        empty : {"truth", "prediction", "both"}: in how many images there is no such pixel (with classes, images and classes together).
        intervals : 95 % percentile bootstrap of every per-image mean: {"level", "drawn", "iou": [low, high], ...}; "drawn" is the
            number of images, or of groups. With several classes an image counts by its mean over the classes.
        failures : [{"case", "error"}].
        learnt_from : see `Evaluation`.
        """
        summary = summarise(self.counts if len(self.classes) > 1 else self.counts[:, 0])
        for name, values in self._by_class().items():
            if name not in SCORES:
                means, over = average(np.where(np.isfinite(values), values, np.nan))
                summary["per_image"][name] = float(average(means)[0])
                summary["per_image_over"][name] = int(over.sum())
        per_image = self.per_image()
        if self.hd95 is not None:
            summary["hd95_median"] = float(np.median(self.hd95))
        summary["learnt_from"] = self.learnt_from
        summary["reliability"] = {}
        if self.reliability:
            summary["ece_pooled"] = float(average([one.expected_calibration_error for one in self.reliability])[0])
            summary["reliability"] = {label: one.bins() for label, one in zip(self.classes, self.reliability, strict=True)}
        summary[f"share_iou_below_{MISS}"] = float((per_image["iou"] < MISS).mean())
        no_truth, no_prediction = self.counts.tp + self.counts.fn == 0, self.counts.tp + self.counts.fp == 0
        summary["empty"] = {
            "truth": int(no_truth.sum()),
            "prediction": int(no_prediction.sum()),
            "both": int((no_truth & no_prediction).sum()),
        }
        intervals = {
            name: bootstrap_mean(np.where(np.isfinite(values), values, np.nan), groups, LEVEL)
            for name, values in per_image.items()
        }
        summary["intervals"] = {
            "level": LEVEL,
            "drawn": intervals["iou"].groups,
            **{name: [interval.low, interval.high] for name, interval in intervals.items()},
        }
        summary["failures"] = [{"case": case, "error": sentence} for case, sentence in self.failures]
        return finite(summary)

    def _by_class(self) -> dict[str, NDArray[np.float64]]:
        """Every score, (N, K)."""
        extra = {"ece": self.ece, "hd95": self.hd95, "surface_dice": self.surface_dice}
        return scores(self.counts) | {name: values for name, values in extra.items() if values is not None}


def is_scores(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as those that `Evaluation.write` wrote."""
    with Path(path).open("rb") as file:
        return file.readline().startswith(b"case,class,")


def finite(value: Any) -> Any:
    """The value with NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
