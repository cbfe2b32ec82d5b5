"""Drawing masks over an image: a translucent fill, and a contour that can be seen on bright and on dark tissue."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart, in an order that stands out from grey.
ORANGE, SKY, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
VERMILION, PURPLE, BLUE = (213, 94, 0), (204, 121, 167), (0, 114, 178)
COLOURS: tuple[Colour, ...] = (ORANGE, SKY, GREEN, YELLOW, VERMILION, PURPLE, BLUE)


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    colours: Sequence[Colour] = COLOURS,
    opacity: float = 0.2,
    labels: Sequence[tuple[str, tuple[float, float]]] = (),
) -> NDArray[np.uint8]:
    """Draw each class of a mask in its own colour.

    Parameters
    ----------
    image : uint8 H x W or H x W x 3 (RGB).
    mask : bool H x W, or K x H x W for K classes.
    colours : RGB for class 0, 1, ...; taken in turn when there are more classes.
    opacity : of the fill, from 0 (contour only) to 1.
    labels : texts and the (x, y) that they are centred on, in pixels.

    Returns
    -------
    uint8 H x W x 3 (RGB). Lines and letters grow with the image, so that a picture looks the same at any size.
    """
    planes = mask[None] if mask.ndim == 2 else mask
    if planes.shape[1:] != image.shape[:2]:
        raise ValueError(f"the mask is {planes.shape[1:]} and the image {image.shape[:2]}; resize one to the other")
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image.copy()
    width = max(1.0, min(picture.shape[:2]) / 250)
    windows = [_window(plane, round(width) + 2) for plane in planes]
    paired = [
        (picture[window], plane[window].astype(np.uint8), np.array(colours[index % len(colours)]))
        for index, (plane, window) in enumerate(zip(planes, windows, strict=True))
    ]
    for part, plane, colour in paired:
        _fill(part, plane, colour, opacity)
    for part, plane, colour in paired:
        _contour(part, plane, colour, width)
    for text, centre in labels:
        _label(picture, text, centre, width)
    return picture


def _window(plane: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Where a class lies, with room for its contour: most of a picture needs no drawing."""
    left, top, width, height = cv2.boundingRect(plane.view(np.uint8))
    return slice(max(0, top - margin), top + height + margin), slice(max(0, left - margin), left + width + margin)


def _fill(picture: NDArray[np.uint8], plane: NDArray[np.uint8], colour: NDArray[Any], opacity: float) -> None:
    """Mix `colour` into `picture` where `plane` is not 0: a pixel of 8 bits has only 256 outcomes a channel, which a table holds."""
    tinted = np.round((1 - opacity) * np.arange(256)[:, None] + opacity * colour).astype(np.uint8)
    cv2.copyTo(cv2.LUT(picture, tinted[None]), plane, picture)


def _contour(picture: NDArray[np.uint8], plane: NDArray[np.uint8], colour: NDArray[Any], width: float) -> None:
    """Blend a line of `width` pixels into `picture`, with a dark rim that sets it off from bright tissue."""
    contours, _ = cv2.findContours(plane, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return
    rim, line = np.zeros_like(plane), np.zeros_like(plane)
    cv2.drawContours(rim, contours, -1, 110, round(width) + 2, cv2.LINE_AA)
    cv2.drawContours(line, contours, -1, 255, round(width), cv2.LINE_AA)
    drawn = picture.copy()  # in one piece, where a pixel has one index
    _blend(drawn, rim, np.zeros(3))
    _blend(drawn, line, colour)
    picture[:] = drawn


def _label(picture: NDArray[np.uint8], text: str, centre: tuple[float, float], width: float) -> None:
    scale, thickness = 0.5 * width, max(1, round(width))
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    corner = (round(centre[0] - text_width / 2), round(centre[1] + text_height / 2))
    for colour, extra in (((0, 0, 0), 2), ((255, 255, 255), 0)):
        cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness + extra, cv2.LINE_AA)


def _blend(picture: NDArray[np.uint8], coverage: NDArray[np.uint8], colour: NDArray[Any]) -> None:
    pixels, touched = picture.reshape(-1, 3), np.flatnonzero(coverage > 0)
    share = coverage.take(touched)[:, None] / 255
    pixels[touched] = np.round((1 - share) * pixels.take(touched, axis=0) + share * colour)
