"""The table of every metric of a grid's networks at the last epoch, and of the strata by lesion size and class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmunext.benchmark.formats import comma_separated, latex, markdown, rounded
from cmunext.benchmark.grid import Dataset, Grid
from cmunext.benchmark.results import cells_of, files_of
from cmunext.benchmark.scores import MISS
from cmunext.benchmark.store import Store
from cmunext.benchmark.strata import SIZES, sizes_of
from cmunext.data.table import read_table
from cmunext.errors import InputError

SHARES = ("iou", "dice", "sensitivity", "precision", "specificity", "surface_dice", "ece")  # in [0, 1]
DISTANCE, MISSED = "hd95", f"iou_below_{MISS}"
STRATA = tuple(f"size {size}" for size in SIZES)
NOTES = (
    "Means over images of the last epoch, per cent; an image on which a score is undefined is left out. hd95: pixels, over the "
    "images where it is finite; it and surface dice are measured with `surface` in the grid file. "
    f"{MISSED.replace('_', ' ')}: share of the images.",
    "",
    "size: IoU of the images whose lesion has that share of the image. class: IoU of that class. In brackets the number of different "
    "images. An empty cell has no run, or nothing to average.",
)

Row = Mapping[str, tuple[float, int]]  # column -> mean, and number of different images behind it


def metrics_texts(
    grid: Grid, store: Store, dataset: Dataset, recipe: str, labels: Sequence[str], preface: Sequence[str]
) -> dict[str, str]:
    """The table as Markdown, CSV and LaTeX, by suffix; one row a label. Raises InputError when a score table is damaged."""
    rows = {label: row_of(grid, store, dataset, recipe, label) for label in labels}
    known = {column for row in rows.values() for column in row}
    classes = sorted(column for column in known if column.startswith("class "))
    strata = [*(column for column in STRATA if column in known), *classes]
    plain = [*SHARES, DISTANCE, MISSED]
    title = f"Every metric: {dataset.name}, recipe {recipe}"
    header = ["Network", *(column.replace("_", " ") for column in plain), *strata]
    body = [
        [label, *(_shown(row, column) for column in plain), *(_shown(row, column, counted=True) for column in strata)]
        for label, row in rows.items()
    ]
    names = [*plain, *(name for column in strata for name in (column.replace(" ", "_"), f"{column.replace(' ', '_')}_images"))]
    numbers = [
        [label, *(row[column][0] if column in row else None for column in plain)]
        + [value for column in strata for value in row.get(column, (None, None))]
        for label, row in rows.items()
    ]
    return {
        ".md": markdown(title, preface, header, body, NOTES),
        ".csv": comma_separated(["network", *names], numbers),
        ".tex": latex(title, preface, header, body),
    }


def row_of(grid: Grid, store: Store, dataset: Dataset, recipe: str, label: str) -> Row:
    """The means of one network over the images of every run, the last epoch on the official lists; empty when a run is missing."""
    paths = [path for _, path in files_of(store, cells_of(grid, dataset, recipe, label), "last")]
    if not paths or not all(path.is_file() for path in paths):
        return {}
    found: dict[str, list[tuple[str, float]]] = {}
    for path in paths:
        for case, row in read_table(path).items():
            iou = _number(row, "iou", path)
            for column in (*SHARES, DISTANCE):
                found.setdefault(column, []).append((case, _number(row, column, path)))
            found.setdefault(MISSED, []).append((case, float(iou < MISS)))
            kind = row.get("class")
            for stratum in (*(f"size {size}" for size in _size(row, path)), *([f"class {kind}"] if kind else [])):
                found.setdefault(stratum, []).append((case, iou))
    return {column: _mean(values) for column, values in found.items() if any(np.isfinite(value) for _, value in values)}


def _mean(values: Sequence[tuple[str, float]]) -> tuple[float, int]:
    finite = [(case, value) for case, value in values if np.isfinite(value)]
    return float(np.mean([value for _, value in finite])), len({case for case, _ in finite})


def _size(row: Mapping[str, str], path: Path) -> list[str]:
    """The stratum of an image by its lesions' share of it, all classes together; nothing where the table has no counts."""
    counts = [column for column in row if column in ("tp", "fn") or column.startswith(("tp_", "fn_"))]
    if not counts:
        return []
    pixels = _number(row, "height", path) * _number(row, "width", path)
    return sizes_of([sum(_number(row, column, path) for column in counts) / pixels])


def _number(row: Mapping[str, str], column: str, path: Path) -> float:
    """An entry of a score table, NaN where it is empty or the table lacks the column."""
    try:
        return float(row.get(column) or "nan")
    except ValueError as error:
        raise InputError(f"the column {column!r} of {path} holds no numbers ({error}); score the cell again") from error


def _shown(row: Row, column: str, counted: bool = False) -> str:
    if column not in row:
        return ""
    value, images = row[column]
    text = rounded(value, 1) if column == DISTANCE else rounded(100 * value, 2)
    return f"{text} ({images})" if counted else text
