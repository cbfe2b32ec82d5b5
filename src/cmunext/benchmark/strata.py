"""Scores of parts of an evaluation: small and large lesions, classes, cases without a near duplicate in training."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cmunext.benchmark.scores import LEVEL, MISS, Evaluation, finite
from cmunext.benchmark.statistics import bootstrap_mean
from cmunext.data.table import TABLE, dataset_table
from cmunext.errors import InputError, UsageError
from cmunext.metrics import average

# Shares of the image, fixed so that strata of different lists and datasets are the same. They cut BUSI's lesions into thirds.
SMALL, LARGE = 0.03, 0.10
SIZES = ("no lesion", f"under {100 * SMALL:g} %", f"{100 * SMALL:g} to {100 * LARGE:g} %", f"{100 * LARGE:g} % and more")
SHOWN = ("iou", "dice", "sensitivity", "precision")
UNKNOWN = "unknown"
CLEAN, OTHERS = "in the clean list", "not in the clean list"
STANDARD = ("size", "class", "clean")

Stratification = Mapping[str, Sequence[str]]  # its name -> the stratum of each case


def sizes_of(shares: ArrayLike) -> list[str]:
    """The stratum of each lesion by its share of the image, in [0, 1]: one of `SIZES`."""
    return [SIZES[0] if share == 0 else SIZES[1 + (share >= SMALL) + (share >= LARGE)] for share in np.asarray(shares)]


def columns_of(root: Path, cases: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Column of the dataset's table -> case -> its entry, "" where the table does not have the case.

    Raises UsageError when the table lacks a column, or its name is one of the strata that are always made.
    """
    table = dataset_table(root) if columns else {}
    known = list(next(iter(table.values()), {}))
    for column in columns:
        if column in STANDARD:
            raise UsageError(f"the stratum {column!r} has a meaning of its own; rename that column of {TABLE}")
        if column not in known:
            raise UsageError(f"{root} has no column {column!r} in {TABLE}; it has {', '.join(known) or 'no such table'}")
    return {column: {case: table.get(case, {}).get(column, "") for case in cases} for column in columns}


def cleanness_of(cases: Sequence[str], clean: Collection[str]) -> dict[str, str]:
    """Case -> whether it stands in a clean list. Raises InputError when that list names a case that was not to be measured."""
    kept = frozenset(clean)
    if others := sorted(kept.difference(cases)):
        raise InputError(f"the clean list names {others[0]!r}, which the list lacks; give the clean list of that very list")
    return {case: CLEAN if case in kept else OTHERS for case in cases}


def standard_strata(evaluation: Evaluation) -> dict[str, Sequence[str]]:
    """By size, and by class where any is known."""
    by_size = {"size": sizes_of(evaluation.lesion_share())}
    return by_size | ({"class": evaluation.kinds} if any(evaluation.kinds) else {})


def strata_of(
    evaluation: Evaluation, stratifications: Stratification, groups: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The scores of each stratum, as values that JSON can hold; undefined is None.

    Parameters
    ----------
    stratifications : for each, the stratum of each of the evaluation's N cases; "" is shown as "unknown".
    groups : (N,) what the intervals draw whole; by default each image by itself.

    Returns
    -------
    Name -> one record a stratum, sizes from small to large, others by name, "unknown" last: {"stratum", "n", "drawn" (images or
    groups), "iou", "iou_interval" (95 %, percentile bootstrap), "dice", "sensitivity", "precision", "share_iou_below_0.1"}; all are
    means over images.
    """
    per_image = evaluation.per_image()
    names = np.array(evaluation.cases if groups is None else groups, dtype=object)

    def record(stratum: str, chosen: np.ndarray) -> dict[str, Any]:
        interval = bootstrap_mean(per_image["iou"][chosen], names[chosen], LEVEL)
        return {
            "stratum": stratum or UNKNOWN,
            "n": int(chosen.sum()),
            "drawn": interval.groups,
            "iou_interval": [interval.low, interval.high],
            **{name: float(average(per_image[name][chosen])[0]) for name in SHOWN},
            f"share_iou_below_{MISS}": float((per_image["iou"][chosen] < MISS).mean()),
        }

    found = {}
    for name, labels in stratifications.items():
        of_case = np.array(labels, dtype=object)
        found[name] = [record(stratum, of_case == stratum) for stratum in sorted(set(labels), key=_place)]
    return finite(found)


def _place(stratum: str) -> tuple[int, str]:
    return (SIZES.index(stratum), "") if stratum in SIZES else (len(SIZES) + (stratum == ""), stratum)
