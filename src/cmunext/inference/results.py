"""Segmenting many files into one folder: masks, overlays and `segmentation.json`, and nothing of anybody else's ever overwritten.

`segmentation.json` is also how a later run knows what an earlier one wrote: those files it may replace, others it leaves alone (`records`).
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError
from cmunext.image.files import read_image, write_image, write_mask
from cmunext.image.overlay import overlay
from cmunext.inference.lesions import Spacing
from cmunext.inference.pipeline import helpers, overlapped
from cmunext.inference.records import Record, recording
from cmunext.inference.segmenter import Segmentation, Segmenter
from cmunext.metadata import BACKGROUND

MASK = "_mask"  # what the name of an image gets for that of its mask
SAVE_EVERY = 5.0  # seconds between two savings of the records


@dataclass(frozen=True)
class Result:
    """What became of one file: `record`, with paths as they were given, or `error`, the sentence why there is none."""

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
    jobs: int = 0,
    batch: int = 0,
) -> Iterator[Result]:
    """Segment each file and write NAME_mask.png, NAME_overlay.png and, for all of them, segmentation.json into the folder `out`.

    NAME is the file's stem; of two files of one stem the second gets "-2". A network of several classes gives a mask for each,
    NAME_mask_CLASS.png, and then "mask" is a list. A record is {"source", "width", "height", "weights", "backend", "precision",
    "spacing_mm", "classes", "mask", "overlay", "lesions": [as `Lesion`]}. In segmentation.json all paths are absolute, so that a later run
    knows a file from wherever it is started. Records of earlier runs into the same folder stay there, also when the folder was moved.
    Decoding, the network and encoding go on side by side; a few images are in memory at a time.

    Parameters
    ----------
    spacing : millimetres from a pixel to the next, (down, across), for all the files.
    overwrite : replace files in `out` that no earlier run wrote.
    weights : what the records name as the weights.
    jobs : helpers that decode, measure and encode beside the network; 0 is one a core, up to four.
    batch : images that the network takes at a time; 0 is one on the CPU (a stream), which is as fast there, and eight on a GPU.

    Yields a Result for each file, in order: a file that cannot be read is reported in it, and the others are still done. When the
    iteration ends early, by an interruption too, what is finished is on disk, whole, and recorded. Other runs may write into `out`
    at the same time, and a run that was killed can be repeated as it was called.

    Raises
    ------
    UsageError : before anything is written, when an output would overwrite an input, or a file that no earlier run wrote.
    OSError : when the folder cannot be written, or the disk is full.
    """

    def prepare(source: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        image = read_image(source)
        return image, segmenter.preprocessing.to_input(image)

    def run(prepared: list[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> NDArray[np.float32]:
        return segmenter.predict_inputs([x for _, x in prepared])

    def finish(
        source: Path, prepared: tuple[NDArray[np.uint8], NDArray[np.float32]], logits: NDArray[np.float32]
    ) -> dict[str, Any]:
        image, _ = prepared
        segmentation = segmenter.interpret(logits, image.shape[:2], spacing)
        record = _write(source, image, segmentation, Path(out), records.files[source], segmenter, spacing, weights)
        records.add(source, record)
        return record

    with recording(out, sources, lambda name: output_names(name, segmenter.metadata.classes), overwrite) as records:
        saved = time.monotonic()
        results = overlapped(records.files, prepare, run, finish, *pace(segmenter, len(records.files), jobs, batch))
        with closing(results):
            for source, outcome in results:
                if isinstance(outcome, InputError):
                    yield Result(source, error=str(outcome))
                    continue
                if time.monotonic() - saved > SAVE_EVERY:
                    records.save()
                    saved = time.monotonic()
                yield Result(source, outcome)


def pace(segmenter: Segmenter, count: int, jobs: int, batch: int) -> tuple[int, int]:
    """Helpers, and images at a time."""
    return max(1, min(jobs or helpers(), count)), batch or segmenter.backend.preferred_batch


def _write(
    source: Path,
    image: NDArray[np.uint8],
    segmentation: Segmentation,
    folder: Path,
    outputs: Record,
    segmenter: Segmenter,
    spacing: Spacing | None,
    weights: str,
) -> dict[str, Any]:
    """Write one image's files, and give its record."""
    masks = [folder / name for name in ([outputs["mask"]] if isinstance(outputs["mask"], str) else outputs["mask"])]
    picture = folder / outputs["overlay"]
    for mask, path in zip(_planes(segmentation.mask), masks, strict=True):
        write_mask(path, mask)
    write_image(picture, draw(image, segmentation))
    return {
        "source": str(source),
        "width": image.shape[1],
        "height": image.shape[0],
        "weights": weights,
        "backend": segmenter.backend.name,
        "precision": segmenter.backend.precision,
        "spacing_mm": list(spacing) if spacing else None,
        "classes": list(segmentation.classes),
        "mask": str(masks[0]) if len(masks) == 1 else [str(path) for path in masks],
        "overlay": str(picture),
        "lesions": [lesion.to_dict() for lesion in segmentation.lesions],
    }


def draw(image: NDArray[np.uint8], segmentation: Segmentation) -> NDArray[np.uint8]:
    """The overlay of a segmentation: uint8 H x W x 3 (RGB). Several lesions bear their numbers in `lesions`, from 1."""
    planes = [plane for plane, name in zip(_planes(segmentation.mask), segmentation.classes, strict=True) if name != BACKGROUND]
    numbered = segmentation.lesions if len(segmentation.lesions) > 1 else ()
    labels = [(str(number), lesion.centroid) for number, lesion in enumerate(numbered, 1)]
    return overlay(image, np.array(planes).reshape(-1, *image.shape[:2]), labels=labels)


def _planes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask[None] if mask.ndim == 2 else mask


def output_names(name: str, classes: Sequence[str]) -> Record:
    """The files' names: a mask, or of several classes a list of one each, and the overlay."""
    endings = ["_" + "".join(c if c.isalnum() else "-" for c in each) for each in classes]
    if len({ending.casefold() for ending in endings}) < len(endings):  # some disks tell no case
        endings = [f"{ending}-{number}" for number, ending in enumerate(endings)]
    masks = [f"{name}{MASK}{ending}.png" for ending in endings]
    return {"mask": f"{name}{MASK}.png" if len(classes) == 1 else masks, "overlay": f"{name}_overlay.png"}
