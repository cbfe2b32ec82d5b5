"""Looking a dataset folder over before anything is trained on it: what does not fit, what it is made of, what it holds twice, and
what its lists share."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.align import SAME_FRAME
from cmunext.data.duplicates import (
    NEAR,
    NONE,
    Clusters,
    Pair,
    check,
    clusters,
    digest,
    find,
    groups_content,
    with_agreement,
)
from cmunext.data.fingerprint import Fingerprint, Progress, fingerprint
from cmunext.data.layout import Layout, list_content, list_entries, resolve
from cmunext.data.leaks import Leak, clean, find_leaks, naming_errors
from cmunext.data.prepare import binary
from cmunext.data.sources import NORMAL
from cmunext.data.table import classes_of, dataset_table
from cmunext.errors import InputError, UsageError
from cmunext.image.files import in_8_bits, plain, read_image, read_levels
from cmunext.metadata import measured_classes
from cmunext.storage import write_bytes

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
INVERTED = 0.9  # share of its edge from which on a mask is taken for inverted; lesions of BUSI and BUS-BRA have up to 0.035
GREY, GREY_AS_COLOUR, COLOUR = "grey", "grey in a colour file", "colour"
KINDS = {  # kind of a problem -> what it means
    "image": "the image is missing, ambiguous or unreadable",
    "mask": "a mask is missing, ambiguous or unreadable",
    "no-image": "a mask has no image",
    "size": "a mask has another size than its image",
    "levels": "a mask holds other levels than 0 and 255",
    "empty": "a case that is not of class normal has no lesion",
    "full": "a mask covers its whole image",
    "inverted": "a mask is foreground along its image's edge, and not everywhere inside",
    "unknown": "a list names a case that the dataset lacks",
    "repeated": "a list names a case more than once",
    "overlap": "two lists name the same case",
    "leak": "a case equals, or shows the same frame as, another case of an earlier list",
}


@dataclass(frozen=True)
class Problem:
    """Something to put right: the case (or name) it is about, its kind (one of KINDS), and a sentence."""

    case: str
    kind: str
    message: str


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes
    ----------
    cases : number of images.
    problems : empty when all is well.
    search : what was searched for: "near" duplicates (equal images among them), "exact" (equal pixel by pixel), or "none".
    clusters : groups of cases that show the same frame: what `pairs` link.
    pairs : the pairs found, with what is known of each; equal images are paired with the first of them only.
    cross_class : the pairs of different classes, by name.
    annotated_twice : "pairs" that have two masks, and the "mean" and "median" IoU of those; None without such a pair.
    leaks : list -> its cases that are, themselves or as a duplicate, in a list given before it; the first list has none.
    clean : list -> its other cases, in the list's order; not for the first list.
    classes : class -> number of cases; "" counts those of which nothing tells the class.
    images : "modes" (how many are grey, grey in a colour file, colour), "coloured" (in a mostly grey dataset, cases with coloured
        pixels, such as callipers), "sizes" (number of different sizes), "height" and "width" (percentiles, pixels).
    masks : for each class of masks: "area" (percentiles of the lesions' share of the image, over the masks that are not empty),
        "regions" (number of connected regions, 8-neighbourhood, specks included -> number of cases), "empty" (cases).
    lists : list -> "cases" and "classes" of it.
    unlisted : cases in none of the lists; empty when no list was given.
    """

    cases: int
    problems: tuple[Problem, ...]
    search: str
    clusters: Clusters
    pairs: tuple[Pair, ...]
    cross_class: tuple[tuple[str, str], ...]
    annotated_twice: Mapping[str, float | None]
    leaks: Mapping[str, tuple[str, ...]]
    clean: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, int]
    images: Mapping[str, Any]
    masks: tuple[Mapping[str, Any], ...]
    lists: Mapping[str, Mapping[str, Any]]
    unlisted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain values, for JSON."""
        records = {"problems": [vars(problem) for problem in self.problems], "pairs": [pair.to_dict() for pair in self.pairs]}
        return {field.name: getattr(self, field.name) for field in fields(self)} | records


@dataclass(frozen=True)
class _Look:
    """What is kept of an image: a digest of its pixels (the same for grey in a colour file), its size and its mode."""

    digest: bytes
    size: tuple[int, int]
    mode: str


def audit(
    root: str | os.PathLike[str],
    lists: Sequence[str | os.PathLike[str]] = (),
    *,
    search: str = NEAR,
    similarity: float = SAME_FRAME,
    progress: Progress = iter,
) -> Audit:
    """Look over a dataset folder and, where given, its lists; a list is looked for as it stands, then in the dataset folder.

    Parameters
    ----------
    search : for duplicates: "near", "exact" (equal pixel by pixel; quick) or "none".
    similarity : what makes a near duplicate; see `duplicates.find`.
    progress : shown for reading, proposing near duplicates, confirming them, and comparing their masks.

    Raises
    ------
    UsageError : `root` is not a dataset folder, a list is not there or given twice, or there is no such search or similarity.
    InputError : no image in it; a list or `cases.csv` is not text.
    """
    check(search, similarity)
    layout = Layout.open(root)
    files = [layout.find_list(path) for path in lists]
    if repeated := [path for path, count in Counter(path.resolve() for path in files).items() if count > 1]:
        raise UsageError(f"the list {repeated[0]} is given twice; give each list once")
    labels = [path.name for path in files]
    labels = [label if labels.count(label) == 1 else str(path) for label, path in zip(labels, files, strict=True)]
    entries = {label: resolve(list_entries(path), layout.cases) for label, path in zip(labels, files, strict=True)}
    classes = classes_in(layout)

    problems: list[Problem] = []
    looks: dict[str, _Look] = {}
    prints: dict[str, Fingerprint] = {}
    shapes: list[dict[str, tuple[float, int]]] = [
        {} for _ in range(layout.classes)
    ]  # of each class: case -> (share of the image, regions)
    for case in progress(layout.cases):
        try:
            image = read_image(layout.image(case))
        except InputError as error:
            problems.append(Problem(case, "image", str(error)))
        else:
            looks[case] = _look(image)
            if search == NEAR:
                prints[case] = fingerprint(image)
        problems += _check_masks(layout, case, looks.get(case), classes[case], shapes)
    for number, of_class in enumerate(layout.mask_files):
        for name in of_class.keys() - classes.keys():
            problems.append(
                Problem(name, "no-image", f"masks/{number} has {of_class[name][0].name}, but images/ has no such case")
            )

    pairs = find({case: look.digest for case, look in looks.items() if search != NONE}, prints, similarity, progress)
    pairs = tuple(with_agreement(layout, pair) for pair in progress(pairs))
    agreements = [pair.agreement for pair in pairs if pair.agreement is not None]
    found = clusters(pairs)
    problems += [Problem(*error) for error in naming_errors(entries, frozenset(layout.cases))]
    known = {label: [name for name in dict.fromkeys(names) if name in classes] for label, names in entries.items()}
    leaks = find_leaks(known, found)
    problems += [_leak(leak, looks) for of_list in leaks.values() for leak in of_list if leak.twin != leak.case]
    listed = {name for names in entries.values() for name in names}
    return Audit(
        cases=len(layout.cases),
        problems=tuple(sorted(problems, key=lambda problem: (list(KINDS).index(problem.kind), problem.case, problem.message))),
        search=search,
        clusters=found,
        pairs=pairs,
        cross_class=tuple((pair.first, pair.second) for pair in pairs if _differ(classes[pair.first], classes[pair.second])),
        annotated_twice={
            "pairs": len(agreements),
            "mean": fmean(agreements) if agreements else None,
            "median": median(agreements) if agreements else None,
        },
        leaks={label: tuple(leak.case for leak in of_list) for label, of_list in leaks.items()},
        clean=clean(known, leaks),
        classes=_counted(classes.values()),
        images=_image_statistics(looks),
        masks=tuple(_mask_statistics(of_class) for of_class in shapes),
        lists={
            label: {"cases": len(names), "classes": _counted(classes[name] for name in names if name in classes)}
            for label, names in entries.items()
        },
        unlisted=tuple(case for case in layout.cases if case not in listed) if entries else (),
    )


def classes_in(layout: Layout) -> dict[str, str]:
    """Case -> class of a dataset folder, "" where nothing tells it. Raises InputError when `cases.csv` cannot be used."""
    return classes_of(layout.cases, dataset_table(layout.root))


def write_findings(root: str | os.PathLike[str], found: Audit, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write groups.csv (case, group; for `split`) and, of each list but the first, NAME_clean.txt, each in one step.

    Returns the files written, replacing what was there. Raises OSError, or UsageError when two lists have one name.
    """
    folder = Path(folder)
    contents = {folder / "groups.csv": groups_content(Layout.open(root).cases, found.clusters)}
    for label, names in found.clean.items():
        path = folder / f"{Path(label).stem}_clean.txt"
        if path in contents:
            raise UsageError(f"two lists would be written to {path.name}; rename one of the lists")
        contents[path] = list_content(names)
    for path, content in contents.items():
        write_bytes(path, content)
    return tuple(contents)


def _differ(one: str, other: str) -> bool:
    return bool(one and other) and one != other


def _leak(leak: Leak, looks: Mapping[str, _Look]) -> Problem:
    equal = leak.case in looks and leak.twin in looks and looks[leak.case].digest == looks[leak.twin].digest
    relation = "equals" if equal else "shows the same frame as"
    message = f"{leak.case!r} of {leak.list} {relation} {leak.twin!r} of {leak.twin_list}; keep both in one list"
    return Problem(leak.case, "leak", message)


def _look(image: NDArray[np.uint8]) -> _Look:
    pixels = plain(image)
    mode = GREY if image.ndim == 2 else GREY_AS_COLOUR if pixels.ndim == 2 else COLOUR
    return _Look(digest(pixels), (image.shape[0], image.shape[1]), mode)


def _check_masks(
    layout: Layout, case: str, look: _Look | None, kind: str, shapes: list[dict[str, tuple[float, int]]]
) -> list[Problem]:
    """The problems of a case's masks; notes each readable mask in `shapes`."""
    try:
        paths = layout.masks(case)
    except InputError as error:
        return [Problem(case, "mask", str(error))]
    problems = []
    lesions, regions_of = measured_classes(layout.class_names), []  # a background may well be all over the edge
    for number, path in enumerate(paths):
        name = f"masks/{number}/{path.name}"
        try:
            stored = read_levels(path)
            levels = in_8_bits(stored, path)
        except InputError as error:
            problems.append(Problem(case, "mask", str(error)))
            continue
        if look and levels.shape != look.size:
            sizes = f"{levels.shape[1]} x {levels.shape[0]}, its image {look.size[1]} x {look.size[0]}"
            problems.append(Problem(case, "size", f"{name} is {sizes}; redraw it, or let `cmunext prepare` resize it"))
        try:
            mask = binary(stored, path)
        except InputError as error:
            problems.append(Problem(case, "levels", str(error)))
            continue
        if not {0, 255}.issuperset(values := np.unique(levels).tolist()):
            shown = ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
            problems.append(Problem(case, "levels", f"{name} holds the levels {shown}; `cmunext prepare` makes them 0 and 255"))
        shapes[number][case] = float(mask.mean()), cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        if number not in lesions:
            continue
        regions_of.append(shapes[number][case][1])
        if mask.all():
            problems.append(Problem(case, "full", f"{name} covers its whole image; draw the lesion only"))
        elif _share_of_edge(mask) > INVERTED:
            problems.append(Problem(case, "inverted", f"{name} seems to be inverted; draw the lesion white (255) on black (0)"))
    if len(regions_of) == len(lesions) and not any(regions_of) and kind != NORMAL:
        problems.append(
            Problem(case, "empty", f"{case!r} has no lesion in its mask; draw it, or leave the case out of the lists")
        )
    return problems


def _share_of_edge(mask: NDArray[np.bool_]) -> float:
    """Which share of the pixels along the edge of a mask, bool H x W, is foreground."""
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


def _image_statistics(looks: Mapping[str, _Look]) -> dict[str, Any]:
    modes = Counter(look.mode for look in looks.values())
    mostly_grey = 2 * modes[COLOUR] < len(looks)
    return {
        "modes": {mode: modes[mode] for mode in (GREY, GREY_AS_COLOUR, COLOUR)},
        "coloured": [case for case, look in looks.items() if look.mode == COLOUR] if mostly_grey else [],
        "sizes": len({look.size for look in looks.values()}),
        "height": _percentiles([look.size[0] for look in looks.values()]),
        "width": _percentiles([look.size[1] for look in looks.values()]),
    }


def _mask_statistics(shapes: Mapping[str, tuple[float, int]]) -> dict[str, Any]:
    return {
        "area": _percentiles([share for share, regions in shapes.values() if regions]),
        "regions": {str(count): number for count, number in sorted(Counter(regions for _, regions in shapes.values()).items())},
        "empty": [case for case, (_, regions) in shapes.items() if not regions],
    }


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Percentile -> value, interpolated linearly; None where there are no values."""
    found = np.percentile(values, PERCENTILES).tolist() if values else [None] * len(PERCENTILES)
    return {f"p{percent}": value for percent, value in zip(PERCENTILES, found, strict=True)}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
