"""A case as three pictures: image, truth, prediction."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.predicted import MaskFolder, common_classes, predicted
from cmunext.data.dataset import read_case
from cmunext.data.layout import Layout
from cmunext.image.overlay import COLOURS, ORANGE, SKY, Colour
from cmunext.image.sheet import outlined
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import measured_classes

TRUTH, PREDICTION = SKY, ORANGE  # with one class; with several each has its own colour in both pictures


def panels(source: Segmenter | MaskFolder, layout: Layout, case: str, box: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The image, with the outline of the truth, and with that of the prediction; with one class the third has the truth as well.

    Parameters
    ----------
    box : width and height that each picture fits, pixels.

    Returns
    -------
    Three uint8 h x w x 3 (RGB). Raises InputError or OSError when the case cannot be read.
    """
    image, truth = read_case(layout, case)
    kept = measured_classes(common_classes(source, layout))
    mask = predicted(source, case, image, (image.shape[0], image.shape[1]))[0][kept]
    truth = truth[kept]
    shown: list[tuple[NDArray[np.bool_], Sequence[Colour]]] = [(truth[:0], COLOURS), (truth, COLOURS), (mask, COLOURS)]
    if len(kept) == 1:
        shown[1:] = [(truth, (TRUTH,)), (np.concatenate([truth, mask]), (TRUTH, PREDICTION))]
    return [outlined(image, masks, colours, box) for masks, colours in shown]


def legend(classes: Sequence[str]) -> list[tuple[str, Colour]]:
    """What the colours mean, given the measured classes."""
    if len(classes) == 1:
        return [("truth", TRUTH), ("prediction", PREDICTION)]
    return [(label, COLOURS[number % len(COLOURS)]) for number, label in enumerate(classes)]
