"""A raw download -> the dataset folder: images as PNG of the same pixels, a case's masks merged, masks strictly 0 and 255."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.fingerprint import Progress
from cmunext.data.layout import CLASSES, class_names, quote
from cmunext.data.sources import NORMAL, Download, Source, find
from cmunext.data.table import TABLE, table_content
from cmunext.errors import InputError, UsageError
from cmunext.image.files import (
    first_levels,
    in_8_bits,
    read_grey,
    read_image,
    read_levels,
    several_classes,
    thresholded,
    write_image,
    write_mask,
)
from cmunext.metadata import unnamed_classes
from cmunext.storage import settle, write_bytes

LARGEST_LABEL = 20  # a foreground of a level up to this may be a label map's number of a class
PROPORTIONS = 0.05  # by which those of a mask and of its image may differ, for sides are whole pixels


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes
    ----------
    kind : what the download was read as: "busi", "busbra" or "pairs".
    cases : cases of the download that are now in the dataset folder: `written` + `unchanged`.
    written : of these, cases of which a file was written.
    unchanged : of these, cases that were there already, pixel by pixel.
    merged : cases of which a mask was put together from several files.
    resized : cases of which a mask had another size than the image and was resized to it (nearest neighbour).
    binarised : cases of which a mask held other levels than 0 and 255.
    empty : cases without a lesion.
    left_out : normal cases left out because that was asked for.
    skipped : (case or file, why) of everything that could not be used.
    """

    kind: str
    cases: int
    written: int
    unchanged: int
    merged: tuple[str, ...]
    resized: tuple[str, ...]
    binarised: tuple[str, ...]
    empty: tuple[str, ...]
    left_out: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {**asdict(self), "skipped": [{"case": case, "message": message} for case, message in self.skipped]}


@dataclass(frozen=True)
class _Case:
    """A case decoded: its image, uint8 H x W or H x W x 3 (RGB), a bool mask H x W of each class, and what was done to them."""

    image: NDArray[np.uint8]
    masks: tuple[NDArray[np.bool_], ...]
    notes: frozenset[str]
    labels: frozenset[tuple[int, int]]  # (number of the class, level up to `LARGEST_LABEL` with which its foreground is drawn)


def prepare(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    kind: str = "auto",
    normals: bool = True,
    overwrite: bool = False,
    progress: Progress = iter,
) -> PrepareReport:
    """Bring a download into the dataset layout. A second run over the same download changes nothing.

    Images are read as `image.files.read_image` does and written as PNG: grey stays grey, RGB stays RGB. A table of cases
    (`cases.csv`, or BUS-BRA's own) is kept as `cases.csv`, and so is a `classes.txt` that names the classes. What
    cannot be read is skipped with the reason, the others are done.

    Parameters
    ----------
    src : the download's folder; for what is recognised see `sources.find`.
    dst : the dataset folder; made when missing.
    kind : "auto", "busi", "busbra" or "pairs".
    normals : keep cases of class "normal" (their masks are empty). The official 647-case BUSI data set leaves them out.
    overwrite : replace files of `dst` that hold something else than would be written.
    progress : wraps the cases while they are gone through, to show how far it is.

    Raises
    ------
    UsageError : `src` holds nothing to prepare, `dst` lies in it, or a file of `dst` holds something else and `overwrite` is
        false; then nothing is written.
    InputError : a table of cases cannot be used.
    OSError : `dst` cannot be written; what was written until then is whole.
    """
    src, dst = Path(src), Path(dst)
    _check_apart(src, dst)
    download = find(src, kind)
    left_out = () if normals else tuple(source.name for source in download.sources if source.kind == NORMAL)
    sources = [source for source in download.sources if normals or source.kind != NORMAL]
    texts = _texts(download, dst)

    notes: dict[str, frozenset[str]] = {}
    labels: dict[int, tuple[int, str]] = {}  # number of a class -> the first label of its foreground, and in which case
    skipped = list(download.unpaired)

    def decoded(chosen: Sequence[Source]) -> Iterator[tuple[Source, _Case]]:
        for source in progress(chosen):
            try:
                case = _decoded(source)
                _check_one_label(source.name, case.labels, labels)
            except InputError as error:
                skipped.append((source.name, str(error)))
            else:
                notes[source.name] = case.notes
                yield source, case

    # First everything that is there already is compared, so that a refusal comes before the first write.
    there = {source.name: source for source in sources if any(path.exists() for path in _targets(source, dst))}
    fresh = [source for source in sources if source.name not in there]
    pending, differing = [], [path for path, content in texts.items() if path.exists() and path.read_bytes() != content]
    for source, case in decoded(list(there.values())):
        states = {path: _state(path, pixels) for path, pixels in _planes(source, case, dst)}
        differing += [path for path, state in states.items() if state == "differs"]
        if set(states.values()) != {"same"}:
            pending.append(source)
    if differing and not overwrite:
        names = [str(path.relative_to(dst)) for path in differing]
        raise UsageError(f"{dst} holds other content in {quote(names)}; give --overwrite to replace it, or another folder")

    unchanged = len(notes) - len(pending)
    written = 0
    for source, case in decoded(pending + fresh):
        for path, pixels in _planes(source, case, dst):
            if _state(path, pixels) != "same":
                (write_mask if pixels.dtype == bool else write_image)(path, pixels)
        written += 1
    if written:
        settle(dst)
    for path, content in texts.items():
        if not path.exists() or path.read_bytes() != content:
            write_bytes(path, content)

    def noted(note: str) -> tuple[str, ...]:
        return tuple(source.name for source in sources if note in notes.get(source.name, ()))

    return PrepareReport(
        kind=download.kind,
        cases=written + unchanged,
        written=written,
        unchanged=unchanged,
        merged=noted("merged"),
        resized=noted("resized"),
        binarised=noted("binarised"),
        empty=noted("empty"),
        left_out=left_out,
        skipped=tuple(sorted(skipped)),
    )


def _check_apart(src: Path, dst: Path) -> None:
    """Refuse to write where the download is read."""
    inside = src.resolve()
    for target in (dst, dst / "images", dst / "masks"):
        if target.resolve().is_relative_to(inside):
            raise UsageError(f"the output {dst} lies in the input {src}; choose a folder outside it")
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"the output {dst} is a file; choose a folder")


def _texts(download: Download, dst: Path) -> dict[Path, bytes]:
    """The files of `dst` beside images and masks, and what belongs into each: the table of cases and the names of the classes.

    Raises InputError for a table that names none of the cases, and as `layout.class_names`.
    """
    texts = {}
    if download.table:
        cases = [source.name for source in download.sources]
        if cases and not download.table.keys() & set(cases):
            raise InputError(
                f"the table of {download.root} names none of its images, but {next(iter(download.table))!r}; name each case as its "
                f"image without the ending, {cases[0]!r}"
            )
        texts[dst / TABLE] = table_content(download.table, list(next(iter(download.table.values()))))
    masks = len(download.sources[0].masks) if download.sources else 1
    if (names := class_names(download.root / CLASSES, masks)) != unnamed_classes(masks):
        texts[dst / CLASSES] = "".join(f"{name}\n" for name in names).encode()
    return texts


def _targets(source: Source, dst: Path) -> list[Path]:
    file_name = f"{source.name}.png"
    return [dst / "images" / file_name, *(dst / "masks" / str(number) / file_name for number in range(len(source.masks)))]


def _planes(source: Source, case: _Case, dst: Path) -> list[tuple[Path, NDArray[Any]]]:
    """The files of a case and what belongs into each: uint8 for the image, bool for the masks."""
    return list(zip(_targets(source, dst), (case.image, *case.masks), strict=True))


def _state(path: Path, pixels: NDArray[Any]) -> str:
    """Of a file to write: "missing", "same" (it holds these pixels already, however encoded) or "differs"."""
    if not path.exists():
        return "missing"
    try:
        same = (
            np.array_equal(read_grey(path), pixels * np.uint8(255))
            if pixels.dtype == bool
            else np.array_equal(read_image(path), pixels)
        )
    except InputError:  # whatever it is, it is not what belongs there
        same = False
    return "same" if same else "differs"


def _check_one_label(name: str, labels: frozenset[tuple[int, int]], known: dict[int, tuple[int, str]]) -> None:
    """Raise InputError where the foreground of a class has another label than in earlier cases: it may be of several classes."""
    for number, label in sorted(labels):
        other, first = known.setdefault(number, (label, name))
        if label != other:
            raise InputError(
                f"its foreground is drawn with level {label} and that of {first} with {other}; if these are classes, draw each in masks of "
                "its own (masks/0, masks/1, ...), white (255) on black (0)"
            )


def _decoded(source: Source) -> _Case:
    """Read a case. Raises InputError where its image or one of its masks cannot be used."""
    image = read_image(source.image)
    shape = image.shape[:2]
    notes, labels = set(), set()
    masks = []
    for number, files in enumerate(source.masks):
        merged = np.zeros(shape, bool)
        for path in files:
            stored = read_levels(path)
            levels, mask = in_8_bits(stored, path), binary(stored, path)
            if not np.array_equal(levels, mask * np.uint8(255)):
                notes.add("binarised")
            if 0 < (level := int(levels.max())) <= LARGEST_LABEL:
                labels.add((number, level))
            if mask.shape != shape:
                _check_upright(mask.shape, shape, path)
                notes.add("resized")
                mask = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
            merged |= mask
        if len(files) > 1:
            notes.add("merged")
        masks.append(merged)
    if not any(mask.any() for mask in masks):
        notes.add("empty")
    return _Case(image, tuple(masks), frozenset(notes), frozenset(labels))


def _check_upright(mask: tuple[int, ...], image: tuple[int, ...], path: Path) -> None:
    """Raise InputError where a mask would fit its image if one of them were turned by a quarter, and only then."""
    across, upright = mask[0] * image[0] / (mask[1] * image[1]), mask[0] * image[1] / (mask[1] * image[0])
    if abs(across - 1) < PROPORTIONS < abs(upright - 1):
        raise InputError(
            f"{path}: the mask is {mask[0]} x {mask[1]} pixels and its image {image[0]} x {image[1]}: one of them is turned; turn it back"
        )


def binary(stored: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """A mask's levels as `read_levels` gives them -> bool of the same shape: true above half of the range, or at the one level that is not 0.

    Raises InputError where the levels are several and all dark, or as `thresholded` does, so that nobody can tell what is foreground.
    """
    mask = thresholded(stored, path)
    if mask.any():
        return mask
    values = np.unique(stored)
    if len(values) == 1 and values[0] > 0:
        raise InputError(f"{path}: the mask is of one level, {values[0]}, all over; draw the lesion white (255) on black (0)")
    if len(values) <= 2 and values[0] == 0:
        return stored > 0
    raise several_classes(path, f"the levels {first_levels(stored)}")
