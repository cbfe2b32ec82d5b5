"""Cutting a dataset into training and validation lists: seeded, stratified by class, with a patient's or a frame's images together."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmunext.data.fingerprint import Progress
from cmunext.data.layout import Layout, list_content, quote
from cmunext.data.table import PATIENT_COLUMN, TABLE, classes_of, dataset_table, read_table
from cmunext.errors import InputError, UsageError
from cmunext.storage import write_bytes

AUTO, NONE, DUPLICATES = "auto", "none", "duplicates"


@dataclass(frozen=True)
class WrittenList:
    """One list: its file, how many cases it names, how many of each class ("" where nothing tells), was it there before."""

    path: str
    cases: int
    classes: dict[str, int]
    unchanged: bool


@dataclass(frozen=True)
class SplitReport:
    """What `split` did.

    Attributes
    ----------
    group : what was kept together: "none", "duplicates", a column of cases.csv, or the file given.
    groups : number of groups; equal to the number of cases when each stands by itself.
    lists : the lists, training before validation, fold by fold.
    left_out : (case, why) of every image that cannot be trained on and is therefore in no list.
    """

    seed: int
    group: str
    groups: int
    lists: tuple[WrittenList, ...]
    left_out: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        left_out = [{"case": case, "message": message} for case, message in self.left_out]
        return {**asdict(self), "lists": [asdict(one) for one in self.lists], "left_out": left_out}


def split(
    root: str | os.PathLike[str],
    *,
    val: float | None = None,
    folds: int | None = None,
    seed: int = 0,
    group: str = AUTO,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress = iter,
) -> SplitReport:
    """Write NAME_train.txt and NAME_val.txt, or NAME_train1.txt, NAME_val1.txt, ... of a dataset folder.

    The same dataset, options and seed give the same lists on every machine.

    Parameters
    ----------
    root : the dataset folder.
    val : hold-out: the share of cases to validate on, between 0 and 1. Give either this or `folds`.
    folds : cross-validation: number of folds, at least 2; each case is validated on exactly once.
    seed : not negative.
    group : what must not be torn apart: "none"; "duplicates" (images that show the same frame, see `duplicates`); a column of
        cases.csv such as "patient"; a CSV file with the columns case and group, such as groups.csv of an audit; "auto" is "patient"
        where cases.csv has it, else "none".
    out : the folder to write to; the dataset folder by default.
    name : the start of the lists' file names; the dataset folder's name by default.
    overwrite : replace lists that are there with other content.
    progress : shown while images are read and compared, which only "duplicates" needs.

    Raises
    ------
    UsageError : an option cannot be met, or a list is there with other content (then nothing is written).
    InputError : the dataset or the table of groups cannot be used.
    """
    layout = Layout.open(root)
    shares, held_out = _shares(val, folds)
    if seed < 0:
        raise UsageError(f"the seed is {seed}; it must not be negative")
    stem = layout.root.resolve().name if name is None else name
    if not stem or Path(stem).name != stem:
        raise UsageError(f"the lists' name is {stem!r}; it must be the start of a file name, such as busi")

    names, left_out = _usable(layout)
    classes = classes_of(names, dataset_table(layout.root))
    group, groups = groups_of(layout, names, group, progress)
    parts = assign([classes[case] for case in names], [groups[case] for case in names], shares, seed)
    if empty := [number for number in range(len(shares)) if number not in parts]:
        asked = f"{folds} folds" if folds else f"a share of {val} to validate on"
        raise UsageError(
            f"{asked} leaves {len(empty)} of {len(shares)} parts without a case: there are {len(names)} cases in "
            f"{len(set(groups.values()))} groups; ask for fewer folds, another share, or other groups"
        )

    lists: dict[str, list[str]] = {}
    for number, part in enumerate(held_out, start=1):
        ending = f"{number if folds else ''}.txt"
        lists[f"{stem}_train{ending}"] = [case for case, own in zip(names, parts, strict=True) if own != part]
        lists[f"{stem}_val{ending}"] = [case for case, own in zip(names, parts, strict=True) if own == part]
    written = _write(layout.root if out is None else Path(out), lists, classes, overwrite)
    return SplitReport(seed, group, len(set(groups.values())), written, left_out)


def assign(classes: Sequence[str], groups: Sequence[str], shares: Sequence[float], seed: int) -> list[int]:
    """Deal cases into parts so that groups stay whole and every part gets its share of every class.

    Groups are shuffled, then dealt from the largest to the smallest, each to the part where it lowers most the misfit
    sum over parts k and classes c (and all cases together) of (count_kc - target_kc)^2 / target_kc.

    Parameters
    ----------
    classes, groups : of each case.
    shares : the share of each part; they sum to 1.
    seed : of the shuffle.

    Returns
    -------
    The number of the part of each case.
    """
    kinds = sorted(set(classes))
    totals = [classes.count(kind) for kind in kinds] + [len(classes)]
    counts: dict[str, list[int]] = {}  # group -> how many of each class, and in all; in the order of the cases
    for kind, member_of in zip(classes, groups, strict=True):
        count = counts.setdefault(member_of, [0] * len(totals))
        count[kinds.index(kind)] += 1
        count[-1] += 1
    # Sorting by the generator's raw numbers: NumPy promises that stream for good, which it does not promise of `permutation`.
    keys = np.random.PCG64(seed).random_raw(len(counts))
    order = sorted(zip(keys.tolist(), counts, strict=True), key=lambda pair: (-counts[pair[1]][-1], pair[0]))

    targets = [[share * total for total in totals] for share in shares]
    filled = [[0] * len(totals) for _ in shares]
    part_of: dict[str, int] = {}
    for _, member_of in order:
        count = counts[member_of]

        def misfit_added(part: int, count: list[int] = count) -> float:
            return sum(
                new * (new + 2 * (have - target)) / target
                for new, have, target in zip(count, filled[part], targets[part], strict=True)
            )

        best = min(range(len(shares)), key=misfit_added)
        filled[best] = [have + new for have, new in zip(filled[best], count, strict=True)]
        part_of[member_of] = best
    return [part_of[member_of] for member_of in groups]


def groups_of(layout: Layout, names: Sequence[str], group: str, progress: Progress = iter) -> tuple[str, dict[str, str]]:
    """What is kept together, by its name, and case -> group. For `group`, `progress` and the errors see `split`."""
    table = dataset_table(layout.root)
    columns = next(iter(table.values()), {}).keys()
    if group == AUTO:
        group = PATIENT_COLUMN if PATIENT_COLUMN in columns else NONE
    if group == NONE:
        return group, {case: case for case in names}
    if group == DUPLICATES:
        from cmunext.data.duplicates import duplicates  # reads every image; the other ways read none

        first_of = {case: cluster[0] for cluster in duplicates(layout, names, progress=progress) for case in cluster}
        return group, {case: first_of.get(case, case) for case in names}
    if Path(group).is_file():
        source, column, rows = group, "group", read_table(group)
        if rows and column not in next(iter(rows.values())):
            raise InputError(f"the table {group} has no column 'group'; it needs the columns case and group")
    elif group in columns:
        source, column, rows = f"of {layout.root}", group, table
    else:
        known = f"a column of {TABLE} ({', '.join(columns)})" if columns else f"a column of {TABLE} (this dataset has none)"
        raise UsageError(f"the group {group!r} is neither {AUTO}, {NONE}, {DUPLICATES}, {known}, nor a CSV file")
    if missing := [case for case in names if not rows.get(case, {}).get(column)]:
        raise InputError(f"the table {source} gives no {column} for {len(missing)} cases: {quote(missing)}; complete it")
    return group, {case: rows[case][column] for case in names}


def _shares(val: float | None, folds: int | None) -> tuple[list[float], list[int]]:
    """The share of each part, and the parts that are validated on in turn."""
    if val is not None and folds is None:
        if not 0 < val < 1:
            raise UsageError(f"the share to validate on is {val}; it must lie between 0 and 1, such as 0.3")
        return [1 - val, val], [1]
    if folds is not None and val is None:
        if folds < 2:
            raise UsageError(f"the number of folds is {folds}; it must be at least 2")
        return [1 / folds] * folds, list(range(folds))
    raise UsageError("a split needs either a share to validate on (--val 0.3) or a number of folds (--folds 5), and not both")


def _usable(layout: Layout) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    names, left_out = [], []
    for case in layout.cases:
        try:
            layout.image(case)
            layout.masks(case)
        except InputError as error:
            left_out.append((case, str(error)))
        else:
            names.append(case)
    return names, tuple(left_out)


def _write(out: Path, lists: Mapping[str, list[str]], classes: Mapping[str, str], overwrite: bool) -> tuple[WrittenList, ...]:
    """Write all lists, or none where one is there with other content."""
    contents = {out / file_name: list_content(cases) for file_name, cases in lists.items()}
    there = {path for path, content in contents.items() if path.is_file() and path.read_bytes() == content}
    if not overwrite and (other := [path.name for path in contents if path.exists() and path not in there]):
        raise UsageError(f"{out} has {quote(other)} with other content; give --overwrite to replace, or another --name or --out")
    for path, content in contents.items():
        if path not in there:
            write_bytes(path, content)
    return tuple(
        WrittenList(str(path), len(cases), dict(sorted(Counter(classes[case] for case in cases).items())), path in there)
        for path, cases in zip(contents, lists.values(), strict=True)
    )
