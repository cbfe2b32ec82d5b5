"""Images on which an export is checked, and INT8 calibrated: cases of a dataset, or simulated ones where there is none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmunext.data.dataset import load_cases
from cmunext.data.layout import Layout
from cmunext.image.preprocess import Preprocessing
from cmunext.phantom import MIN_SIDE, simulate

PHANTOMS = 4
MOST = 256  # cases taken of a dataset; more are thinned out evenly, for they would only take longer


@dataclass(frozen=True, eq=False)
class Samples:
    """Images at the network's size.

    Attributes
    ----------
    source : where they come from, for the report.
    images : uint8 N x height x width x C, in the channel order of `preprocessing`.
    truth : bool N x height x width x K, or None where it is not known.
    preprocessing : that of the network.
    """

    source: str
    images: NDArray[np.uint8]
    truth: NDArray[np.bool_] | None
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, batch: int = 1) -> Iterator[NDArray[np.float32]]:
        """Inputs of the network, float32 n x C x height x width, n = `batch` and fewer at the end."""
        scale, offset = self.preprocessing.scale_and_offset
        for start in range(0, len(self), batch):
            normalised = self.images[start : start + batch] * scale + offset
            yield np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), np.float32)  # NHWC -> NCHW


def simulated(preprocessing: Preprocessing, count: int = PHANTOMS) -> Samples:
    """Phantoms. Their truth is left out: weights for other tasks cannot be measured by it."""
    height, width = (max(MIN_SIDE, side) for side in (preprocessing.height, preprocessing.width))
    images = [preprocessing.resize(simulate(seed, height, width)[0]) for seed in range(count)]
    return Samples("simulated", np.stack(images), None, preprocessing)


def of_dataset(layout: Layout, names: Sequence[str], preprocessing: Preprocessing, classes: int) -> Samples:
    """Cases of a dataset; with their truth where it has as many classes as the network.

    Raises
    ------
    InputError : when a file of a case is missing or cannot be read, or a mask has another size than its image.
    """
    chosen = [names[place] for place in np.linspace(0, len(names) - 1, min(len(names), MOST)).round().astype(int)]
    cases = load_cases(layout, chosen, preprocessing)
    truth = cases.masks[:, 0].astype(bool) if layout.classes == classes else None  # without flips there is one variant
    return Samples(layout.root.resolve().name, cases.images, truth, preprocessing)
