"""A network whose answer is known, it outlines what is bright, and a dataset on which it is right, half right and wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmunext.image.files import read_mask, write_image, write_mask
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import Metadata

SIZE = (48, 64)  # of the network
NAMES = ("benign (1)", "benign (2)", "malignant (1)", "case7")


@dataclass(frozen=True)
class Brightness:
    """A backend whose logits are brightness: positive above half; a second class is what is dark."""

    metadata: Metadata
    name: str = "brightness"
    precision: str = "float32"
    preferred_batch: int = 1

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return np.concatenate([batch * 8, -batch * 8], axis=1)[:, : self.metadata.num_classes]


def brightness(classes: tuple[str, ...] = ("lesion",), activation: str = "sigmoid") -> Segmenter:
    """A segmenter of that backend."""
    preprocessing = Preprocessing(*SIZE, channels="grey", mean=(0.5,), std=(0.5,), activation=activation)
    arguments = {"in_channels": 1, "num_classes": len(classes)}
    return Segmenter(Brightness(Metadata("cmunext-s", arguments, preprocessing, classes)))


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """A filled circle, bool."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def write_cases(root: Path) -> Path:
    """Four cases of different sizes: a good answer, a shifted one, a miss, and an empty truth answered rightly with nothing."""
    bright = [disc((96, 128), (50, 60), 20), disc((60, 90), (30, 40), 12), disc((100, 80), (20, 20), 9), np.zeros((64, 64), bool)]
    truth = [bright[0], disc((60, 90), (30, 46), 12), disc((100, 80), (80, 60), 9), np.zeros((64, 64), bool)]
    for name, image, mask in zip(NAMES, bright, truth, strict=True):
        write_image(root / "images" / f"{name}.png", np.where(image, 230, 20).astype(np.uint8))
        write_mask(root / "masks" / "0" / f"{name}.png", mask)
    (root / "all.txt").write_text("\n".join(NAMES))
    return root


def with_second_class(root: Path) -> Path:
    """Add a class to the dataset: what is not of the first."""
    for name in NAMES:
        write_mask(root / "masks/1" / f"{name}.png", ~read_mask(root / "masks/0" / f"{name}.png"))
    return root
