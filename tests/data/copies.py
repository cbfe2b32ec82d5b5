"""Copies of an image as they turn up in collections: cropped, rescaled, mirrored, brighter, compressed, marked, all at once."""

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # H x W, grey


def crop(image: Image, top: int, bottom: int, left: int, right: int) -> Image:
    return np.ascontiguousarray(image[top:bottom, left:right])


def resize(image: Image, width: int, height: int) -> Image:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC)


def flip(image: Image) -> Image:
    return np.ascontiguousarray(image[:, ::-1])


def gain(image: Image, gamma: float, contrast: float, brightness: float) -> Image:
    return np.clip(255 * (image / 255) ** gamma * contrast + brightness, 0, 255).astype(np.uint8)


def compress(image: Image, quality: int) -> Image:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def mark(image: Image) -> Image:
    """Callipers, a dotted line, a box and letters, as scanners burn them in."""
    image = image.copy()
    height, width = image.shape
    ends = [(int(0.25 * width), int(0.3 * height)), (int(0.6 * width), int(0.5 * height))]
    cv2.line(image, *ends, 255, 1)
    for end in ends:
        cv2.drawMarker(image, end, 255, cv2.MARKER_CROSS, 12, 2)
    cv2.rectangle(image, (int(0.3 * width), int(0.2 * height)), (int(0.7 * width), int(0.6 * height)), 200, 1)
    cv2.putText(image, "RT BREAST 10:00", (10, int(0.9 * height)), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    return image


def _crop_part(image: Image, random: np.random.Generator) -> Image:
    """70 to 95 % of each side, anywhere."""
    (height, width), share = image.shape, random.uniform(0.7, 0.95, 2)
    rows, columns = round(height * share[0]), round(width * share[1])
    top, left = random.integers(0, height - rows + 1), random.integers(0, width - columns + 1)
    return crop(image, top, top + rows, left, left + columns)


def _rescale(image: Image, random: np.random.Generator) -> Image:
    """0.5 to 2 times the size, the proportions changed by up to a tenth."""
    scale, stretch = 2 ** random.uniform(-1, 1), random.uniform(1 / 1.1, 1.1)
    return resize(image, round(image.shape[1] * scale * stretch), round(image.shape[0] * scale))


def _change_gain(image: Image, random: np.random.Generator) -> Image:
    return gain(image, random.uniform(0.6, 1.6), random.uniform(0.8, 1.2), random.uniform(-15, 15))


def _compress(image: Image, random: np.random.Generator) -> Image:
    return compress(image, int(random.integers(40, 81)))


KINDS = {  # name -> a copy of an image, drawn with a generator
    "crop, 70 to 95 % of each side": _crop_part,
    "rescale, 0.5 to 2": _rescale,
    "mirror": lambda image, _: flip(image),
    "gain and gamma": _change_gain,
    "JPEG, quality 40 to 80": _compress,
    "marks": lambda image, _: mark(image),
    "crop, rescale, gain, marks, JPEG": lambda image, random: _compress(
        mark(_change_gain(_rescale(_crop_part(image, random), random), random)), random
    ),
    "all of it, mirrored": lambda image, random: KINDS["crop, rescale, gain, marks, JPEG"](flip(image), random),
}
