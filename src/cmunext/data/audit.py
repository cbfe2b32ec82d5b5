"""Looking a dataset folder over before anything is trained on it: what does not fit, what it is made of, what its lists share.

Here `clusters` are groups of images that are equal pixel by pixel, and `leaks` are found by them; near duplicates (the same frame
cropped, rescaled or with another gain) are not searched for.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.layout import Layout, list_entries, resolve
from cmunext.data.prepare import binary
from cmunext.data.sources import NORMAL
from cmunext.data.table import classes_of, dataset_table
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_grey, read_image

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Clusters = tuple[tuple[str, ...], ...]

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
GREY, GREY_AS_COLOUR, COLOUR = "grey", "grey in a colour file", "colour"
KINDS = {  # kind of a problem -> what it means
    "image": "the image is missing, ambiguous or unreadable",
    "mask": "a mask is missing, ambiguous or unreadable",
    "no-image": "a mask has no image",
    "size": "a mask has another size than its image",
    "levels": "a mask holds other levels than 0 and 255",
    "empty": "a case that is not of class normal has no lesion",
    "full": "a mask covers its whole image",
    "unknown": "a list names a case that the dataset lacks",
    "repeated": "a list names a case more than once",
    "overlap": "two lists name the same case",
    "leak": "a case equals, pixel by pixel, another case of an earlier list",
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
    clusters : groups of cases whose images are equal pixel by pixel.
    leaks : list -> its cases that are, themselves or as an equal image, in a list given before it; the first list has none.
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
    clusters: Clusters
    leaks: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, int]
    images: Mapping[str, Any]
    masks: tuple[Mapping[str, Any], ...]
    lists: Mapping[str, Mapping[str, Any]]
    unlisted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Look:
    """What is kept of an image: a digest of its pixels (the same for grey in a colour file), its size and its mode."""

    digest: bytes
    size: tuple[int, int]
    mode: str


def audit(root: str | os.PathLike[str], lists: Sequence[str | os.PathLike[str]] = (), *, progress: Progress = iter) -> Audit:
    """Look over a dataset folder and, where given, its lists; a list is looked for as it stands, then in the dataset folder.

    Raises
    ------
    UsageError : `root` is not a dataset folder, or a list is not there or given twice.
    InputError : no image in it; a list or `cases.csv` is not text.
    """
    layout = Layout.open(root)
    files = [layout.find_list(path) for path in lists]
    if repeated := [path for path, count in Counter(path.resolve() for path in files).items() if count > 1]:
        raise UsageError(f"the list {repeated[0]} is given twice; give each list once")
    labels = [path.name for path in files]
    labels = [label if labels.count(label) == 1 else str(path) for label, path in zip(labels, files, strict=True)]
    entries = {label: resolve(list_entries(path), layout.cases) for label, path in zip(labels, files, strict=True)}
    classes = classes_of(layout.cases, dataset_table(layout.root))

    problems: list[Problem] = []
    looks: dict[str, _Look] = {}
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
        problems += _check_masks(layout, case, looks.get(case), classes[case], shapes)
    for number, of_class in enumerate(layout.mask_files):
        for name in of_class.keys() - classes.keys():
            problems.append(
                Problem(name, "no-image", f"masks/{number} has {of_class[name][0].name}, but images/ has no such case")
            )

    clusters = _clusters({case: look.digest for case, look in looks.items()})
    problems += _check_lists(entries, frozenset(layout.cases))
    leaks, leaking = _leaks({label: [name for name in names if name in classes] for label, names in entries.items()}, clusters)
    listed = {name for names in entries.values() for name in names}
    return Audit(
        cases=len(layout.cases),
        problems=tuple(
            sorted(problems + leaking, key=lambda problem: (list(KINDS).index(problem.kind), problem.case, problem.message))
        ),
        clusters=clusters,
        leaks=leaks,
        classes=_counted(classes.values()),
        images=_image_statistics(looks),
        masks=tuple(_mask_statistics(of_class) for of_class in shapes),
        lists={
            label: {"cases": len(names), "classes": _counted(classes[name] for name in names if name in classes)}
            for label, names in entries.items()
        },
        unlisted=tuple(case for case in layout.cases if case not in listed) if entries else (),
    )


def duplicates(layout: Layout, names: Iterable[str]) -> Clusters:
    """Groups of cases whose images are equal pixel by pixel, sorted. Raises InputError for an image that cannot be read."""
    return _clusters({name: _look(read_image(layout.image(name))).digest for name in names})


def _look(image: NDArray[np.uint8]) -> _Look:
    mode = GREY
    if image.ndim == 3:
        plane = image[..., 0]
        mode = GREY_AS_COLOUR if (image == plane[..., None]).all() else COLOUR
        image = plane if mode == GREY_AS_COLOUR else image
    digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return _Look(digest, (image.shape[0], image.shape[1]), mode)


def _check_masks(
    layout: Layout, case: str, look: _Look | None, kind: str, shapes: list[dict[str, tuple[float, int]]]
) -> list[Problem]:
    """The problems of a case's masks; notes each readable mask in `shapes`."""
    try:
        paths = layout.masks(case)
    except InputError as error:
        return [Problem(case, "mask", str(error))]
    problems = []
    regions_of = []
    for number, path in enumerate(paths):
        name = f"masks/{number}/{path.name}"
        try:
            levels = read_grey(path)
        except InputError as error:
            problems.append(Problem(case, "mask", str(error)))
            continue
        if look and levels.shape != look.size:
            sizes = f"{levels.shape[1]} x {levels.shape[0]}, its image {look.size[1]} x {look.size[0]}"
            problems.append(Problem(case, "size", f"{name} is {sizes}; redraw it, or let `cmunext prepare` resize it"))
        try:
            mask = binary(levels, path)
        except InputError as error:
            problems.append(Problem(case, "levels", str(error)))
            continue
        if not {0, 255}.issuperset(values := np.unique(levels).tolist()):
            shown = ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
            problems.append(Problem(case, "levels", f"{name} holds the levels {shown}; `cmunext prepare` makes them 0 and 255"))
        if mask.all():
            problems.append(Problem(case, "full", f"{name} covers its whole image; draw the lesion only"))
        shapes[number][case] = float(mask.mean()), cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        regions_of.append(shapes[number][case][1])
    if len(regions_of) == len(paths) and not any(regions_of) and kind != NORMAL:
        problems.append(
            Problem(case, "empty", f"{case!r} has no lesion in its mask; draw it, or leave the case out of the lists")
        )
    return problems


def _check_lists(entries: Mapping[str, Sequence[str]], known: frozenset[str]) -> list[Problem]:
    problems = []
    lists_of: dict[str, list[str]] = defaultdict(list)
    for label, names in entries.items():
        for name, count in Counter(names).items():
            lists_of[name].append(label)
            if name not in known:
                problems.append(Problem(name, "unknown", f"{label} names {name!r}, which the dataset lacks; correct the list"))
            if count > 1:
                problems.append(Problem(name, "repeated", f"{label} names {name!r} {count} times; keep one line"))
    for name, labels in lists_of.items():
        if len(labels) > 1:
            problems.append(Problem(name, "overlap", f"{name!r} is in {' and '.join(labels)}; keep it in one of them"))
    return problems


def _leaks(entries: Mapping[str, Sequence[str]], clusters: Clusters) -> tuple[dict[str, tuple[str, ...]], list[Problem]]:
    """List -> its cases seen in an earlier list, and a problem for each that is there under another name."""
    cluster_of = {case: cluster for cluster in clusters for case in cluster}
    leaks: dict[str, tuple[str, ...]] = {}
    problems = []
    seen: dict[str, str] = {}  # case -> the first list that has it
    for label, names in entries.items():
        leaking = []
        for name in sorted(set(names)):
            twins = [case for case in cluster_of.get(name, (name,)) if case in seen]
            if twins:
                leaking.append(name)
            if twins and name not in twins:
                message = f"{name!r} of {label} equals {twins[0]!r} of {seen[twins[0]]}; keep both in one list"
                problems.append(Problem(name, "leak", message))
        leaks[label] = tuple(leaking)
        seen |= {name: label for name in names if name not in seen}
    return leaks, problems


def _clusters(digests: Mapping[str, bytes]) -> Clusters:
    cases: dict[bytes, list[str]] = defaultdict(list)
    for case, digest in digests.items():
        cases[digest].append(case)
    return tuple(sorted(tuple(sorted(cluster)) for cluster in cases.values() if len(cluster) > 1))


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
