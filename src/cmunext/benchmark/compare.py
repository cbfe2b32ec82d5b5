"""Comparing score tables case by case: is one network better than another on the same images, by how much, how surely?"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.scores import LEVEL, finite
from cmunext.benchmark.statistics import bootstrap_mean, holm, wilcoxon
from cmunext.data.layout import quote
from cmunext.data.table import read_table
from cmunext.errors import InputError, UsageError
from cmunext.metrics import SCORES

LOWER_IS_BETTER = ("hd95", "ece", "fp", "fn")
SIGNIFICANT = 0.05  # adjusted p-values below are called a difference

Scores = dict[str, float]  # case -> score, NaN where undefined


@dataclass(frozen=True)
class Pair:
    """One network against another on the same cases.

    Attributes
    ----------
    a, b : what is compared.
    n : cases on which both scores are defined.
    wins, ties, losses : cases on which `a` is better than, equal to, worse than `b`.
    mean_a, mean_b, difference : means over the cases where both scores are finite, and mean of a - b over them.
    low, high : 95 % percentile bootstrap interval of `difference`.
    median_difference : of a - b over the n cases.
    p_value, p_adjusted : two-sided Wilcoxon signed-rank test, and after Holm's correction for all pairs of the comparison.
    effect : rank-biserial correlation in [-1, 1]; 1 when `a` is better wherever they differ.
    """

    a: str
    b: str
    n: int
    wins: int
    ties: int
    losses: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    median_difference: float
    p_value: float
    p_adjusted: float
    effect: float


@dataclass(frozen=True)
class Comparison:
    """Every pair of the score tables that were given.

    Attributes
    ----------
    metric : the column that was compared.
    cases : number of cases, the same in every table.
    drawn : what the intervals draw whole: as many as there are cases, or as there are groups.
    means : name -> mean over the cases where the score is finite.
    pairs : in the order of the tables, each with all after it.
    """

    metric: str
    cases: int
    drawn: int
    means: dict[str, float]
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as values that JSON can hold; undefined is None. Each pair carries its `sentence`."""
        pairs = [{**asdict(pair), "sentence": self.sentence(pair)} for pair in self.pairs]
        document = {**asdict(self), "level": LEVEL, "lower_is_better": lower_is_better(self.metric), "pairs": pairs}
        return finite(document)

    def sentence(self, pair: Pair) -> str:
        """What a pair says, in words."""
        if not pair.n:
            return f"{pair.a} and {pair.b} cannot be compared: no case has a {self.metric} in both."
        ahead = pair.a if pair.effect > 0 else pair.b
        if pair.p_adjusted < SIGNIFICANT:
            verdict = f"{ahead} is better than {pair.b if ahead == pair.a else pair.a}"
        else:
            verdict = f"no difference between {pair.a} and {pair.b} can be shown"
        tests = f", Holm-corrected for {len(self.pairs)} tests" if len(self.pairs) > 1 else ""
        mean = f"mean difference {pair.difference:+.4f}" if math.isfinite(pair.difference) else ""
        if math.isfinite(pair.low):
            mean += f" (95 % interval {pair.low:+.4f} to {pair.high:+.4f})"
        shown = f"{mean}, " if mean else ""
        return (
            f"By {self.metric} on {pair.n} cases {verdict}: {shown}{pair.a} is better on {pair.wins}, equal on {pair.ties}, "
            f"worse on {pair.losses}; Wilcoxon p = {p_text(pair.p_adjusted)}{tests}, rank-biserial effect {pair.effect:+.2f}."
        )


def compare_files(
    paths: Sequence[str | os.PathLike[str]], metric: str = "iou", groups: str | os.PathLike[str] | None = None
) -> Comparison:
    """Compare the score tables that `cmunext evaluate --out` wrote, each with each.

    Parameters
    ----------
    paths : two or more CSV files with one row a case, of the same cases in any order.
    metric : a column of scores: iou, dice, sensitivity, ..., hd95 and ece; and of a class, iou_NAME, ... See `lower_is_better`.
    groups : CSV file with the columns case and group (patient, near duplicates); the intervals then draw whole groups.

    Raises
    ------
    UsageError : fewer than two files, one given twice, or no such file.
    InputError : a file is no score table, lacks the metric, does not cover the same cases as the first, or was measured at other sizes.
    """
    files = [Path(path) for path in paths]
    if len(files) < 2:
        raise UsageError(
            f"a comparison needs at least two score tables, and {len(files)} was given; write them with evaluate --out"
        )
    if repeated := sorted({str(file) for file in files if files.count(file) > 1}):
        raise UsageError(f"the score table {repeated[0]} is given twice; give each once")
    rows_of = {file: read_table(file) for file in files}
    tables = dict(zip(_labels(files), (_column(file, rows, metric) for file, rows in rows_of.items()), strict=True))
    _require_same_sizes(rows_of)
    group_of = None
    if groups is not None:
        rows = read_table(groups)
        cases = next(iter(tables.values()))
        if missing := [case for case in cases if not rows.get(case, {}).get("group")]:
            raise InputError(f"the table {groups} gives no group for {len(missing)} cases: {quote(missing)}; complete it")
        group_of = {case: rows[case]["group"] for case in cases}
    return compare(tables, metric, group_of)


def compare(tables: Mapping[str, Scores], metric: str = "iou", group_of: Mapping[str, str] | None = None) -> Comparison:
    """Compare scores by name, each with each: name -> case -> score. For the errors see `compare_files`."""
    (first_name, first), *others = tables.items()
    for name, scores in others:
        if missing := sorted(first.keys() - scores.keys()):
            raise InputError(f"{name} lacks {len(missing)} cases of {first_name}: {quote(missing)}; evaluate both on one list")
        if added := sorted(scores.keys() - first.keys()):
            raise InputError(f"{name} has {len(added)} cases that {first_name} lacks: {quote(added)}; evaluate both on one list")
    cases = list(first)
    values = {name: np.array([scores[case] for case in cases]) for name, scores in tables.items()}
    groups = [group_of[case] for case in cases] if group_of else cases
    pairs = [_pair(a, b, values[a], values[b], metric, groups) for a, b in combinations(values, 2)]
    adjusted = holm([pair["p_value"] for pair in pairs])
    return Comparison(
        metric,
        len(cases),
        len(set(groups)),
        {name: _mean(scores) for name, scores in values.items()},
        tuple(Pair(**pair, p_adjusted=float(p)) for pair, p in zip(pairs, adjusted, strict=True)),
    )


def lower_is_better(metric: str) -> bool:
    """Whether less is better in a column of a score table: of distances, calibration errors and wrong pixels, over all classes or of one."""
    return any(metric == name or metric.startswith(f"{name}_") for name in LOWER_IS_BETTER)


def read_scores(path: str | os.PathLike[str], metric: str) -> Scores:
    """One column of a score table: case -> score, NaN where the cell is empty. Raises UsageError or InputError."""
    return _column(path, read_table(path), metric)


def _column(path: str | os.PathLike[str], rows: Mapping[str, Mapping[str, str]], metric: str) -> Scores:
    columns = next(iter(rows.values()), {}).keys()
    if not rows:
        raise InputError(f"the score table {path} has no row; write it with `cmunext evaluate --out`")
    if metric not in columns:
        raise InputError(f"the score table {path} has no column {metric!r}; it has {', '.join(columns)}")
    try:
        scores = {case: float(row[metric] or "nan") for case, row in rows.items()}
    except ValueError as error:
        raise InputError(f"the column {metric!r} of {path} holds no numbers ({error}); choose a score such as iou") from error
    for case, score in scores.items():
        if metric in SCORES and (score < 0 or score > 1):
            raise InputError(
                f"the {metric} of {case!r} in {path} is {score:g}; it lies in 0..1, and a percentage must be divided by 100"
            )
    return scores


def _require_same_sizes(rows_of: Mapping[Path, Mapping[str, Mapping[str, str]]]) -> None:
    """Raise InputError when files tell of different sizes of a case."""
    seen: dict[str, tuple[str, Path]] = {}  # case -> size and the file that told it first
    for file, rows in rows_of.items():
        for case, row in rows.items():
            if "height" in row and "width" in row:
                size = f"{row['height']}x{row['width']}"
                known, where = seen.setdefault(case, (size, file))
                if size != known:
                    raise InputError(
                        f"{case!r} was measured at {known} in {where} and at {size} in {file}; evaluate both with the same --at"
                    )


def p_text(p_value: float) -> str:
    """A p-value for reading."""
    return "undefined" if math.isnan(p_value) else "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _pair(
    a: str, b: str, of_a: NDArray[np.float64], of_b: NDArray[np.float64], metric: str, groups: Sequence[str]
) -> dict[str, Any]:
    sign = -1.0 if lower_is_better(metric) else 1.0
    test = wilcoxon(sign * of_a, sign * of_b)
    both = np.isfinite(of_a) & np.isfinite(of_b)
    differences = np.full(len(of_a), np.nan)
    differences[both] = of_a[both] - of_b[both]
    interval = bootstrap_mean(differences, groups, LEVEL)
    return {
        **{"a": a, "b": b, "n": test.n, "wins": test.wins, "ties": test.ties, "losses": test.losses},
        **{"mean_a": _mean(of_a[both]), "mean_b": _mean(of_b[both])},
        **{"difference": interval.mean, "low": interval.low, "high": interval.high},
        **{"median_difference": sign * test.median_difference, "p_value": test.p_value, "effect": test.rank_biserial},
    }


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _labels(files: Sequence[Path]) -> list[str]:
    """The shortest names that tell the files apart: the stems, else with their folders."""
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]
