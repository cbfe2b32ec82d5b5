"""A page of side-by-side pictures of near duplicates, to check by eye."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.duplicates import Pair, laid, onto
from cmunext.data.fingerprint import Progress
from cmunext.data.layout import Layout
from cmunext.errors import InputError
from cmunext.image.files import read_image, read_mask, write_image
from cmunext.image.overlay import SKY, VERMILION, overlay
from cmunext.storage import write_text

PAGE = "index.html"
HEIGHT = 320  # pixels of each picture

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px sans-serif; margin: 1em; background: #222; color: #eee }}
figure {{ margin: 0 0 2em }} img, svg {{ display: block; max-width: 100% }}
table {{ border-spacing: 1em 0.1em; margin: 0 0 2em -1em }} th, td {{ text-align: right }} .text {{ text-align: left }}
</style></head><body>
<h1>{title}</h1>
"""


def write_pictures(
    folder: str | os.PathLike[str], layout: Layout, pairs: Sequence[Pair], classes: Mapping[str, str], progress: Progress = iter
) -> Path:
    """Write index.html and a picture a pair (0001.jpg, ...), the least alike pairs first; equal images are left out.

    Each picture shows the first image as it lies on the second, the second, and both as the red and the green of one image, in which
    what agrees is yellow; contours are the masks. Raises OSError, or InputError for an image that has become unreadable.

    Returns
    -------
    The path of the page.
    """
    folder = Path(folder)
    shown = sorted((pair for pair in pairs if not pair.equal), key=lambda pair: (pair.correlation, pair.first, pair.second))
    figures = []
    for number, pair in enumerate(progress(shown), start=1):
        write_image(folder / f"{number:04}.jpg", _picture(layout, pair))
        figures.append(_figure(number, pair, classes))
    what = (
        f"<p>{len(shown)} pairs, the least alike first. Each: the first image laid on the second, the second, and both in one: "
    )
    how = (
        "where they agree, the third picture is yellow; what only the first has is red, what only the second has is green.</p>\n"
    )
    write_page(folder / PAGE, "Near duplicates", f"{what}{how}{''.join(figures)}")
    return folder / PAGE


def write_page(path: Path, title: str, body: str) -> None:
    """Write an HTML page, in one step; `body` is HTML. Raises OSError."""
    write_text(path, f"{_HEAD.format(title=html.escape(title))}{body}</body></html>\n")


def _figure(number: int, pair: Pair, classes: Mapping[str, str]) -> str:
    names = [f"{case} ({classes[case]})" if classes.get(case) else case for case in (pair.first, pair.second)]
    facts = [f"correlation {pair.correlation:.2f}", f"overlap {pair.overlap:.0%}", f"scale {pair.scale:.2f}"]
    if pair.mirror:
        facts.append(f"the first mirrored, {pair.mirror}")
    if pair.agreement is not None:
        facts.append(f"IoU of the masks {pair.agreement:.2f}")
    caption = html.escape(f"{number}. {names[0]} and {names[1]}: {', '.join(facts)}")
    return f'<figure><figcaption>{caption}</figcaption><img src="{number:04}.jpg" alt="" loading="lazy"></figure>\n'


def _picture(layout: Layout, pair: Pair) -> NDArray[np.uint8]:
    first, second = (read_image(layout.image(case)) for case in (pair.first, pair.second))
    size = (second.shape[0], second.shape[1])
    moved = onto(first, pair, size)
    blended = np.dstack([_grey(moved), _grey(second), np.zeros(size, np.uint8)])
    masks = [_masks(layout, pair.first), _masks(layout, pair.second)]
    if masks[0] is not None:
        moved = overlay(moved, laid(masks[0], pair, size)[0], [VERMILION], opacity=0)
    if masks[1] is not None and masks[1].shape[1:] == size:
        second = overlay(second, masks[1], [SKY], opacity=0)
    return np.hstack([_scaled(picture) for picture in (moved, second, blended)])


def _masks(layout: Layout, case: str) -> NDArray[np.bool_] | None:
    try:
        return np.stack([read_mask(path) for path in layout.masks(case)])
    except (InputError, ValueError):  # the audit has told about it
        return None


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
    width = max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    return cv2.resize(colour, (width, HEIGHT), interpolation=cv2.INTER_AREA if image.shape[0] > HEIGHT else cv2.INTER_LINEAR)
