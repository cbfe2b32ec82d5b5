"""From the small files of a grid's cells to the numbers of its tables. Nothing is computed from images or weights here.

Columns
-------
paper : official lists, weights of the best validation epoch, mean over images: comparable with published tables, and optimistic.
last : the same trainings at their last epoch (the average of weights where the recipe keeps one): nothing was picked.
clean : `last` on the validation images without a near duplicate among the training images.
grouped : last epoch, cross-validation that keeps clusters of near duplicates together.
external : `last` on another dataset, on which nothing was chosen.

A value is there when every training it averages is there, else it is missing (None). It is never estimated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmunext.benchmark.compare import read_scores
from cmunext.benchmark.grid import Cell, Dataset, Grid, ListPair
from cmunext.benchmark.statistics import bootstrap_mean, holm, wilcoxon
from cmunext.benchmark.store import CONFIG, HISTORY, Store
from cmunext.data.duplicates import linked
from cmunext.data.layout import list_entries, quote, resolve
from cmunext.data.table import PATIENT_COLUMN, read_table
from cmunext.errors import InputError
from cmunext.storage import read_json


@dataclass(frozen=True)
class Value:
    """One network in one column.

    Attributes
    ----------
    iou, f1 : means over images (of every run), in [0, 1].
    low, high : 95 % bootstrap interval of `iou`; an image that stands in several lists is drawn whole, and so is what shares a patient
        or a group, directly or through others.
    spread : standard deviation of the runs' mean IoUs (n - 1), NaN for a single run.
    runs, images : trainings, and different images.
    """

    iou: float
    f1: float
    low: float
    high: float
    spread: float
    runs: int
    images: int


def columns_of(dataset: Dataset) -> tuple[str, ...]:
    """Names of a dataset's columns; each external dataset has its own."""
    external = [f"external {one.name}" for one in dataset.external] or ["external"]
    return ("paper", "last", "clean", "grouped", *external)


def cells_of(grid: Grid, dataset: Dataset, recipe: str, label: str) -> list[Cell]:
    """The cells behind a row, in the grid's order."""
    return [cell for cell in grid.cells if (cell.dataset.name, cell.recipe.name, cell.label) == (dataset.name, recipe, label)]


def check_lists(grid: Grid) -> None:
    """Read the groups and clean lists, which the tables need only after hours of training.

    Raises UsageError or InputError where one is missing or wrong.
    """
    for dataset in grid.datasets:
        _groups(dataset)
        for lists in dataset.lists:
            if lists.clean is not None and lists.validation.is_file():
                _clean(lists, resolve(list_entries(lists.validation), ()))


def value_of(grid: Grid, store: Store, dataset: Dataset, recipe: str, label: str, column: str) -> Value | None:
    """One network in one column; None when a training of it is missing. Raises InputError when a score table is damaged."""
    runs = scores_of(store, cells_of(grid, dataset, recipe, label), column)
    if not runs:
        return None
    patients = _patients(store, cells_of(grid, dataset, recipe, label), column)
    groups = {} if column.startswith("external") else _groups(dataset)  # whose cases are others, and may have the same names
    group_of = _drawn_together(patients, groups)
    ious = [value for run in runs for value in run["iou"].values()]
    f1s = [value for run in runs for value in run["f1"].values()]
    cases = [case for run in runs for case in run["iou"]]
    means = [float(np.nanmean(list(run["iou"].values()))) for run in runs]
    interval = bootstrap_mean(ious, [group_of.get(case, case) for case in cases])
    return Value(
        interval.mean,
        float(np.nanmean(f1s)),
        interval.low,
        interval.high,
        float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
        len(runs),
        len(set(cases)),
    )


def scores_of(store: Store, cells: Iterable[Cell], column: str) -> list[dict[str, dict[str, float]]]:
    """For each training behind a column: {"iou": case -> score, "f1": ...}. Empty when one is missing, or there is none."""
    found = []
    for cell, path in files_of(store, cells, column):
        if not (path.is_file() and (path.parent / CONFIG).is_file()):
            return []
        scores = {metric: read_scores(path, metric) for metric in ("iou", "f1")}
        if column == "clean":
            kept = _clean(cell.lists, scores["iou"])
            scores = {metric: {case: values[case] for case in kept} for metric, values in scores.items()}
        found.append(scores)
    return found


def files_of(store: Store, cells: Iterable[Cell], column: str) -> list[tuple[Cell, Path]]:
    """The score table of each training behind a column, there or not."""
    kind = "grouped" if column == "grouped" else "official"
    wanted = [cell for cell in cells if cell.lists.kind == kind and not (column == "clean" and cell.lists.clean is None)]
    name = "best" if column == "paper" else "last"
    if column.startswith("external"):
        name = f"external-{column.removeprefix('external').strip()}"
    return [(cell, store.scores(cell)[name]) for cell in wanted if name in store.scores(cell)]


def p_values(grid: Grid, store: Store, dataset: Dataset, recipe: str, column: str = "last") -> dict[str, float]:
    """Label -> p-value of its IoU against the grid's reference (paired Wilcoxon over images, a mean of runs each), Holm-corrected."""
    if grid.reference is None:
        return {}
    of_label = {label: _case_means(scores_of(store, cells_of(grid, dataset, recipe, label), column)) for label in grid.labels}
    reference = of_label.pop(grid.reference)
    others = {label: scores for label, scores in of_label.items() if scores and scores.keys() == reference.keys()}
    tests = [wilcoxon([scores[case] for case in reference], list(reference.values())).p_value for scores in others.values()]
    return dict(zip(others, map(float, holm(tests)), strict=True)) if tests else {}


def histories_of(store: Store, cells: Iterable[Cell]) -> list[dict[int, float]]:
    """Validation IoU by epoch of every finished training among the cells."""
    paths = (store.cell(cell) / HISTORY for cell in cells)
    return [
        {int(epoch): float(row["val_iou"]) for epoch, row in read_table(path, "epoch").items() if row["val_iou"]}
        for path in paths
        if path.is_file()
    ]


def frames_per_second(path: Path | None) -> dict[str, float]:
    """Network -> frames per second, from a file of latencies (the fastest entry of each). Empty when there is no such file.

    Raises InputError when it is something else.
    """
    if path is None or not path.is_file():
        return {}
    try:
        rows = read_json(path)
        speeds: dict[str, float] = {}
        for row in rows:
            speeds[row["network"]] = max(speeds.get(row["network"], 0.0), 1000 / float(row["median_ms"]))
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path} is no list of latencies ({error}); it needs network and median_ms in each entry") from error
    return speeds


def u_score(iou: float, limits: tuple[float, float], parameters: float, gigaflops: float, fps: float) -> float:
    """U-Score of U-Bench (2025), in [5, 100]: the harmonic mean of accuracy and efficiency.

    Parameters
    ----------
    iou : in [0, 1]. limits : the IoUs that count as 0 and 1 (10th and 90th percentile of the benchmark's networks on the dataset).
    parameters : in millions. gigaflops : multiply-accumulates / 1e9. fps : frames per second; say on which device.
    """
    low, high = limits
    accuracy = _clipped((iou - low) / (high - low))
    parts = (
        _clipped((4.32 - math.log(parameters)) / 3.93),
        _clipped((4.20 - math.log(gigaflops)) / 3.32),
        _clipped((fps - 24.28) / 97.35),
    )
    efficiency = 3 / sum(1 / part for part in parts)
    return 100 * 2 / (1 / accuracy + 1 / efficiency)


def _clipped(share: float) -> float:
    return min(1.0, max(0.05, share))


def _case_means(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    gathered: dict[str, list[float]] = {}
    for run in runs:
        for case, value in run["iou"].items():
            gathered.setdefault(case, []).append(value)
    return {case: float(np.mean(gathered[case])) for case in sorted(gathered)}


def _clean(lists: ListPair, known: Iterable[str]) -> list[str]:
    """The cases of the clean list, which must be among the `known` ones of the validation list."""
    path, known = lists.clean, frozenset(known)
    assert path is not None  # asked only for lists that have one
    kept = resolve(list_entries(path), known)
    if unknown := sorted(set(kept) - known):
        raise InputError(
            f"the clean list {path} names {unknown[0]!r}, which is not in the list {lists.validation}; make it again"
        )
    if not kept:
        raise InputError(f"the clean list {path} names no case; take it out of the grid, or make it again")
    return kept


def _patients(store: Store, cells: Iterable[Cell], column: str) -> dict[str, str]:
    """Case -> patient, where the score tables of a column tell it."""
    tables = (read_table(path) for _, path in files_of(store, cells, column) if path.is_file())
    return {case: row[PATIENT_COLUMN] for table in tables for case, row in table.items() if row.get(PATIENT_COLUMN)}


def _groups(dataset: Dataset) -> dict[str, str]:
    rows = read_table(dataset.groups) if dataset.groups else {}
    if without := [case for case, row in rows.items() if not row.get("group")]:
        raise InputError(f"the table {dataset.groups} gives no group for {quote(without)}; complete its column group")
    return {case: row["group"] for case, row in rows.items()}


def _drawn_together(*relations: Mapping[str, str]) -> dict[str, str]:
    """Case -> the first of the cases that it is linked with by sharing a value of any relation (case -> value)."""
    pairs = []
    for relation in relations:
        first_of: dict[str, str] = {}
        pairs += [(first_of.setdefault(value, case), case) for case, value in relation.items()]
    return {case: cluster[0] for cluster in linked(pairs) for case in cluster}
