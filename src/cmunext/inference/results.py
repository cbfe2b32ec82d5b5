"""Segmenting many files into one folder: masks, overlays and `segmentation.json`, and nothing of anybody else's ever overwritten.

`segmentation.json` is also how a later run knows what an earlier one wrote: those files it may replace, others it leaves alone.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image, write_image, write_mask
from cmunext.image.overlay import overlay
from cmunext.inference.lesions import Spacing
from cmunext.inference.segmenter import BACKGROUND, Segmentation, Segmenter
from cmunext.storage import write_json

RECORDS = "segmentation.json"
SAVE_EVERY = 5.0  # seconds between two savings of the records


@dataclass(frozen=True)
class Result:
    """What became of one file: `record`, its entry in segmentation.json, or `error`, the sentence why there is none."""

    source: Path
    record: dict[str, Any] | None = None
    error: str | None = None


def segment_files(
    segmenter: Segmenter,
    sources: Sequence[Path],
    out: str | os.PathLike[str],
    spacing: Spacing | None = None,
    overwrite: bool = False,
    weights: str = "",
) -> Iterator[Result]:
    """Segment each file and write NAME_mask.png, NAME_overlay.png and, for all of them, segmentation.json into the folder `out`.

    NAME is the file's stem; of two files of one stem the second gets "-2". A network of several classes gives a mask for each,
    NAME_mask_CLASS.png, and then "mask" is a list. A record is {"source", "width", "height", "weights", "spacing_mm", "classes",
    "mask", "overlay", "lesions": [as `Lesion`]}. Records of earlier runs into the same folder stay in segmentation.json.

    Parameters
    ----------
    spacing : millimetres from a pixel to the next, (down, across), for all the files.
    overwrite : replace files in `out` that no earlier run wrote.
    weights : what the records name as the weights.

    Yields a Result for each file, in order: a file that cannot be read is reported in it, and the others are still done. When the
    iteration ends early, by an interruption too, what is finished is on disk, whole, and recorded.

    Raises
    ------
    UsageError : before anything is written, when an output would overwrite an input, or a file that no earlier run wrote.
    OSError : when the folder cannot be written, or the disk is full.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; name a folder for the results")
    records = _earlier_records(folder, overwrite)
    names = _names(sources, records)
    outputs = {source: _outputs(folder, name, segmenter.metadata.classes) for source, name in names.items()}
    _refuse_overwriting(outputs, {path.name for record in records.values() for path in _written(record)}, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    try:
        for source, (masks, picture) in outputs.items():
            try:
                image = read_image(source)
            except InputError as error:
                yield Result(source, error=str(error))
                continue
            segmentation = segmenter(image, spacing)
            for mask, path in zip(_planes(segmentation.mask), masks, strict=True):
                write_mask(path, mask)
            write_image(picture, draw(image, segmentation))
            record = {
                "source": str(source),
                "width": image.shape[1],
                "height": image.shape[0],
                "weights": weights,
                "spacing_mm": list(spacing) if spacing else None,
                "classes": list(segmentation.classes),
                "mask": str(masks[0]) if len(masks) == 1 else [str(path) for path in masks],
                "overlay": str(picture),
                "lesions": [lesion.to_dict() for lesion in segmentation.lesions],
            }
            records[_identity(source)] = record
            if time.monotonic() - saved > SAVE_EVERY:
                write_json(folder / RECORDS, list(records.values()))
                saved = time.monotonic()
            yield Result(source, record)
    finally:
        write_json(folder / RECORDS, list(records.values()))


def draw(image: NDArray[np.uint8], segmentation: Segmentation) -> NDArray[np.uint8]:
    """The overlay of a segmentation: uint8 H x W x 3 (RGB). Several lesions bear their numbers in `lesions`, from 1."""
    planes = [plane for plane, name in zip(_planes(segmentation.mask), segmentation.classes, strict=True) if name != BACKGROUND]
    numbered = segmentation.lesions if len(segmentation.lesions) > 1 else ()
    labels = [(str(number), lesion.centroid) for number, lesion in enumerate(numbered, 1)]
    return overlay(image, np.array(planes).reshape(-1, *image.shape[:2]), labels=labels)


def _planes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask[None] if mask.ndim == 2 else mask


def _outputs(folder: Path, name: str, classes: Sequence[str]) -> tuple[list[Path], Path]:
    """The masks, one a class, and the overlay."""
    endings = [""] if len(classes) == 1 else ["_" + "".join(c if c.isalnum() else "-" for c in each) for each in classes]
    return [folder / f"{name}_mask{ending}.png" for ending in endings], folder / f"{name}_overlay.png"


def _earlier_records(folder: Path, overwrite: bool) -> dict[Path, dict[str, Any]]:
    """What segmentation.json of an earlier run says, by the identity of the source."""
    path = folder / RECORDS
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {_identity(Path(record["source"])): record for record in records if _written(record)}
    except (ValueError, TypeError, KeyError) as error:
        if overwrite:
            return {}
        raise UsageError(f"{path}: this file is not of this program; choose another --out, or add --overwrite") from error


def _written(record: dict[str, Any]) -> list[Path]:
    masks = [record["mask"]] if isinstance(record["mask"], str) else record["mask"]
    return [Path(path) for path in (*masks, record["overlay"])]


def _identity(source: Path) -> Path:
    return source.resolve()


def _names(sources: Iterable[Path], records: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """A name for each source: the one it had before, else its stem, numbered where another source has that already."""
    earlier = {source: Path(record["overlay"]).name.removesuffix("_overlay.png") for source, record in records.items()}
    taken = {name.casefold() for name in earlier.values()}  # of names that differ in case only, some disks hold but one
    names = {}
    for source in sources:
        name, number = earlier.get(_identity(source)), 1
        while name is None:
            candidate = source.stem if number == 1 else f"{source.stem}-{number}"
            name, number = (None if candidate.casefold() in taken else candidate), number + 1
        taken.add(name.casefold())
        names[source] = name
    return names


def _refuse_overwriting(outputs: dict[Path, tuple[list[Path], Path]], own: set[str], overwrite: bool) -> None:
    inputs = {_identity(source) for source in outputs}
    for masks, picture in outputs.values():
        for path in (*masks, picture):
            if path.resolve() in inputs:
                raise UsageError(f"{path}: this output would overwrite an input; choose another --out")
            if path.exists() and path.name not in own and not overwrite:
                raise UsageError(
                    f"{path}: this file exists and is not recorded in {RECORDS}; choose another --out, or add --overwrite"
                )
