"""The demonstration: phantoms of which the truth is known, segmented on the same road as any image, scored and drawn."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError
from cmunext.image.files import read_mask, write_image, write_mask
from cmunext.image.overlay import ORANGE, SKY, overlay
from cmunext.image.sheet import contact_sheet, outlined, tile
from cmunext.inference.results import segment_files
from cmunext.inference.segmenter import Segmenter
from cmunext.metrics import count as count_pixels
from cmunext.metrics import scores
from cmunext.phantom import FIELD_WIDTH, simulate
from cmunext.storage import read_json, write_json

SUMMARY = "demo.json"
TILE = (420, 349)  # of the contact sheet: width and height, pixels
TRUTH, PREDICTION = SKY, ORANGE


def demonstrate(
    segmenter: Segmenter,
    out: str | os.PathLike[str],
    count: int = 8,
    seed: int = 0,
    weights: str = "",
    on_phantom: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Simulate `count` phantoms with the seeds `seed`, `seed + 1`, ..., segment them, and write everything into the folder `out`.

    It gets images/ and masks/0/ (a dataset in the usual layout), segmentation/ (as `segment_files` writes it), compared/ (truth
    in blue and prediction in orange), contact-sheet.png and demo.json. A folder of an earlier demonstration is written into again.

    Parameters
    ----------
    weights : what the results name as the weights.
    on_phantom : called with each phantom's entry when it is done.

    Returns
    -------
    What demo.json holds: {"weights", "mean_iou", "contact_sheet", "phantoms": [entry, ...]}, each entry {"seed", "image", "truth",
    "mask", "compared", "iou", "dice", "lesions"}.

    Raises
    ------
    UsageError : when the network knows more than one class, or `out` holds something else.
    OSError : when the folder cannot be written.
    """
    folder = Path(out)
    if segmenter.metadata.num_classes != 1:
        raise UsageError(
            f"the phantoms hold one class, and these weights know {segmenter.metadata.num_classes}; choose other weights"
        )
    if count < 1 or seed < 0:
        raise UsageError(f"count is {count} and seed {seed}; count must be at least 1 and seed at least 0")
    _check_folder(folder)
    entries, tiles = [], []
    write_json(folder / SUMMARY, {})  # from here on the folder is ours
    for number in range(seed, seed + count):
        name = f"phantom-{number:03d}.png"
        image, truth = simulate(number)
        write_image(folder / "images" / name, image)
        write_mask(folder / "masks" / "0" / name, truth)
        spacing = (FIELD_WIDTH / image.shape[1],) * 2
        (result,) = segment_files(segmenter, [folder / "images" / name], folder / "segmentation", spacing, True, weights)
        assert result.record is not None  # it reads what was just written
        prediction = read_mask(result.record["mask"])
        score = scores(count_pixels(prediction[None], truth[None]))
        entry: dict[str, Any] = {
            "seed": number,
            "image": str(folder / "images" / name),
            "truth": str(folder / "masks" / "0" / name),
            "mask": result.record["mask"],
            "compared": str(folder / "compared" / name),
            "iou": float(score["iou"][0]),
            "dice": float(score["dice"][0]),
            "lesions": result.record["lesions"],
        }
        write_image(entry["compared"], compare(image, truth, prediction))
        small = outlined(image, np.stack([truth, prediction]), (TRUTH, PREDICTION), TILE)
        tiles.append(tile([small], TILE, f"phantom {number}   IoU {entry['iou']:.2f}"))
        entries.append(entry)
        if on_phantom:
            on_phantom(entry)
    summary: dict[str, Any] = {
        "weights": weights,
        "mean_iou": float(np.mean([entry["iou"] for entry in entries])),
        "contact_sheet": str(folder / "contact-sheet.png"),
        "phantoms": entries,
    }
    write_image(summary["contact_sheet"], contact_sheet(tiles, (("truth", TRUTH), ("prediction", PREDICTION))))
    write_json(folder / SUMMARY, summary)
    return summary


def compare(image: NDArray[np.uint8], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The outlines of truth (blue) and prediction (orange) on an image: uint8 H x W x 3 (RGB)."""
    return overlay(image, np.stack([truth, prediction]), (TRUTH, PREDICTION), opacity=0)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; name a folder for the demonstration")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            ours = isinstance(read_json(folder / SUMMARY), dict)
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise UsageError(f"{folder}: this folder holds something else than a demonstration; choose another --out")
