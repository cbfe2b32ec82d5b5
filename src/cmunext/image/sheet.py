"""Contact sheets: pictures of any size in tiles of one size, a caption under each, and a legend of colours under all."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.image.overlay import Colour, overlay

CAPTION = 34  # height of a caption, and of the legend, pixels
MARGIN = 2  # left and right of a tile, pixels


def outlined(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], colours: Sequence[Colour], box: tuple[int, int]
) -> NDArray[np.uint8]:
    """An image with the outlines of masks, scaled to fit a box; drawn at that scale, so that lines are crisp at any size.

    Parameters
    ----------
    image : uint8 H x W or H x W x 3 (RGB).
    masks : bool K x H x W; K may be 0.
    colours : RGB of each mask.
    box : width and height, pixels; the picture fills one of them.

    Returns
    -------
    uint8 h x w x 3 (RGB).
    """
    height, width = image.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    size = (max(1, min(box[0], round(width * scale))), max(1, min(box[1], round(height * scale))))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = [cv2.resize(mask.astype(np.float32), size, interpolation=interpolation) > 0.5 for mask in masks]
    stacked = np.array(small, bool).reshape(len(small), size[1], size[0])
    return overlay(cv2.resize(image, size, interpolation=interpolation), stacked, colours, opacity=0)


def tile(pictures: Sequence[NDArray[np.uint8]], box: tuple[int, int], caption: str) -> NDArray[np.uint8]:
    """Pictures (uint8 RGB, none larger than `box`) side by side, each at the foot of a box, with a caption under them.

    Characters beyond ASCII, which OpenCV's letters lack, become "?"; what does not fit is cut off.
    """
    width, height = box
    drawn = np.full((height + CAPTION, len(pictures) * (width + 2 * MARGIN), 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top = height - picture.shape[0]
        left = number * (width + 2 * MARGIN) + MARGIN + (width - picture.shape[1]) // 2
        drawn[top:height, left : left + picture.shape[1]] = picture
    write(drawn, caption, (12, height + 22))
    return drawn


def contact_sheet(
    tiles: Sequence[NDArray[np.uint8]], legend: Sequence[tuple[str, Colour]] = (), columns: int = 4, gap: int = 0
) -> NDArray[np.uint8]:
    """Tiles of one size in rows of `columns`, `gap` pixels apart, with a legend under them where there is one: uint8 RGB."""
    height, width = tiles[0].shape[0], tiles[0].shape[1] + gap
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height + (CAPTION if legend else 0), columns * width - gap, 3), 255, np.uint8)
    for index, one in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width - gap] = one
    left = 12
    for text, colour in legend:
        cv2.rectangle(sheet, (left, rows * height + 11), (left + 18, rows * height + 23), colour, cv2.FILLED)
        left += 26 + write(sheet, text, (left + 26, rows * height + 23)) + 40
    return sheet


def write(picture: NDArray[np.uint8], text: str, corner: tuple[int, int]) -> int:
    """Write a line in black, `corner` being its lower left; returns its width, pixels."""
    text = text.encode("ascii", "replace").decode()
    cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0])
