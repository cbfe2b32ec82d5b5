"""The cases with the lowest scores: by name, and as pictures beside their truth on a page."""

import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmunext.benchmark.panels import legend, panels
from cmunext.benchmark.predicted import MaskFolder
from cmunext.benchmark.scores import Evaluation, finite
from cmunext.data.layout import Layout
from cmunext.data.pictures import PAGE, write_page
from cmunext.errors import UsageError
from cmunext.image.files import write_image
from cmunext.image.overlay import ORANGE
from cmunext.image.sheet import contact_sheet, tile
from cmunext.inference.segmenter import Segmenter

TITLE = "Worst cases"
PANEL = (250, 210)  # width and height of a picture, pixels
COLUMNS, PER_SHEET = 2, 10  # cases beside each other, and on one sheet
GAP = 24  # between them, pixels
DIAGRAM = 260  # pixels


def worst_of(evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The `count` cases with the lowest IoU, the lowest first; of equal ones the largest lesion first.

    Returns
    -------
    A record each, as values that JSON can hold: {"case", "class", "iou", "dice", "truth_share", "prediction_share"}, the last two of
    the image's pixels, all classes together. Raises UsageError when `count` is negative.
    """
    if count < 0:
        raise UsageError(f"the number of worst cases is {count}; it must be 0 or more")
    per_image, counts = evaluation.per_image(), evaluation.counts
    found = (counts.tp + counts.fp).sum(1) / np.prod(evaluation.sizes, axis=1)
    columns = (evaluation.kinds, per_image["iou"], per_image["dice"], evaluation.lesion_share(), found)
    records = [
        {"case": case, "class": kind, "iou": iou, "dice": dice, "truth_share": truth, "prediction_share": prediction}
        for case, kind, iou, dice, truth, prediction in zip(evaluation.cases, *columns, strict=True)
    ]
    ordered = sorted(records, key=lambda one: (one["iou"], -one["truth_share"], one["case"]))
    return [finite(_plain(record)) for record in ordered[:count]]


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise UsageError when `folder` is a file, or holds a page that is not of this kind and would be replaced."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the pictures")
    page = folder / PAGE
    if page.exists() and f"<title>{TITLE}</title>" not in page.read_text("utf-8", "replace"):
        raise UsageError(f"{page} is another page; name another folder for the pictures")


def write_worst(
    folder: str | os.PathLike[str],
    source: Segmenter | MaskFolder,
    layout: Layout,
    evaluation: Evaluation,
    worst: Sequence[Mapping[str, Any]],
    what: str,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Path:
    """Write index.html and contact sheets worst-1.png, ... of the cases that `worst_of` gave, at least one.

    A case is three pictures, see `panels`, at native size whatever the size of comparison was. The page also has the reliability
    diagram of each class, where there are probabilities.

    Parameters
    ----------
    what : a sentence on weights and list, for the page.
    track : wraps the cases, for a progress bar.

    Returns
    -------
    The path of the page. Raises OSError, or InputError for an image that has become unreadable.
    """
    folder = Path(folder)
    tiles = [
        tile(panels(source, layout, record["case"], PANEL), PANEL, _caption(number, record))
        for number, record in enumerate(track(worst), start=1)
    ]
    body = [
        f"<p>{html.escape(what)}</p>\n<p>From the lowest IoU on: image, truth, prediction. Areas are shares of the image.</p>\n"
    ]
    for start in range(0, len(tiles), PER_SHEET):
        name = f"worst-{start // PER_SHEET + 1}.png"
        write_image(folder / name, contact_sheet(tiles[start : start + PER_SHEET], legend(evaluation.classes), COLUMNS, GAP))
        body.append(f'<figure><img src="{name}" alt="The cases of the table below"></figure>\n')
        body.append(_table(start + 1, worst[start : start + PER_SHEET]))
    labels = evaluation.classes if evaluation.reliability else ()  # masks have none
    for label, reliability in zip(labels, evaluation.reliability, strict=True):
        body.append(f"<h2>Calibration{': ' + html.escape(label) if len(evaluation.classes) > 1 else ''}</h2>\n")
        error = reliability.expected_calibration_error
        body.append(f"<p>Share of foreground by predicted probability, over all pixels; expected calibration error {error:.4f}. ")
        body.append(f"On the line is calibrated; the larger a dot, the more pixels.</p>\n{_diagram(reliability.bins())}")
    write_page(folder / PAGE, TITLE, "".join(body))
    return folder / PAGE


def _caption(number: int, record: Mapping[str, Any]) -> str:
    areas = f"truth {100 * record['truth_share']:.1f} %, found {100 * record['prediction_share']:.1f} % of the image"
    return f"{number}. {record['case']}   IoU {record['iou']:.2f}   {areas}"


def _table(first: int, records: Sequence[Mapping[str, Any]]) -> str:
    head = "<tr><th></th><th class=text>case</th><th class=text>class</th><th>IoU</th><th>Dice</th><th>truth</th><th>prediction</th></tr>"
    rows = [
        f"<tr><td>{number}</td><td class=text>{html.escape(one['case'])}</td><td class=text>{html.escape(one['class'])}</td>"
        f"<td>{one['iou']:.4f}</td><td>{one['dice']:.4f}</td><td>{one['truth_share']:.1%}</td><td>{one['prediction_share']:.1%}</td></tr>"
        for number, one in enumerate(records, start=first)
    ]
    return "\n".join(["<table>", head, *rows, "</table>\n"])


def _diagram(bins: Sequence[Mapping[str, float]]) -> str:
    """Reliability as SVG: a dot a bin, on square axes from 0 to 1."""
    filled = [one for one in bins if one["pixels"]]
    most = max((one["pixels"] for one in filled), default=1)
    side, edge = DIAGRAM, 40
    dots = "".join(
        f'<circle cx="{edge + one["probability"] * side:.1f}" cy="{edge / 2 + (1 - one["positive"]) * side:.1f}" '
        f'r="{3 + 5 * (one["pixels"] / most) ** 0.5:.1f}" fill="rgb{ORANGE}"/>'
        for one in filled
    )
    ticks = "".join(
        f'<text x="{edge + share * side}" y="{side + edge}" text-anchor="middle">{share:g}</text>'
        f'<text x="{edge - 6}" y="{edge / 2 + (1 - share) * side + 4}" text-anchor="end">{share:g}</text>'
        for share in (0, 0.5, 1)
    )
    return (
        f'<svg width="{side + 2 * edge}" height="{side + 1.5 * edge}" fill="#eee" font-size="13">'
        f'<rect x="{edge}" y="{edge / 2}" width="{side}" height="{side}" fill="none" stroke="#888"/>'
        f'<path d="M{edge} {edge / 2 + side}L{edge + side} {edge / 2}" stroke="#888"/>{dots}{ticks}'
        f'<text x="{edge + side / 2}" y="{side + 1.4 * edge}" text-anchor="middle">predicted probability</text>'
        f'<text transform="translate({edge / 3} {edge / 2 + side / 2}) rotate(-90)" text-anchor="middle">share of foreground</text></svg>\n'
    )


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else float(value) for key, value in record.items()}
