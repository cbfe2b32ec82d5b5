"""Image -> Segmentation: the road that the command, the Python API, evaluation and the demo all take."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends import BACKENDS, SUFFIXES, Backend, open_weights
from cmunext.inference.lesions import Lesion, Spacing, measure
from cmunext.metadata import Metadata

DEFAULT_WEIGHTS = "cmunext-s-busi"
BACKGROUND = "background"  # a class of this name is segmented, but is no lesion
_ZOO = files("cmunext.zoo")
_BUNDLED_SUFFIX: Mapping[str, str] = {"auto": ".onnx", "onnxruntime": ".onnx", "torch": ".safetensors"}  # backend -> which twin


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image, at the image's own size.

    Attributes
    ----------
    mask : bool H x W; K x H x W when the network knows K > 1 classes.
    probability : float32 in [0, 1], shaped as `mask`.
    lesions : the connected regions of every class but a "background", the largest of each class first.
    classes : the names of the classes.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    lesions: tuple[Lesion, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Segmenter:
    """A network with its preprocessing, ready for images. Make one with `Segmenter.load`.

    >>> segmentation = Segmenter.load("cmunext-s-busi")("image.png")
    """

    backend: Backend

    @classmethod
    def load(
        cls,
        weights: str | PathLike[str] = DEFAULT_WEIGHTS,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> "Segmenter":
        """Load weights: the name of bundled ones (`bundled_names()`), or a file ending in .onnx, .safetensors, .pth or .pt.

        Parameters
        ----------
        backend : "auto" (by the file's suffix; bundled weights run on onnxruntime), "onnxruntime" or "torch".
        device : "cpu" or "cuda".
        threads : of the CPU; None leaves it to the runtime.

        Raises
        ------
        UsageError : when there are no such weights, backend or device, or they do not go together.
        InputError : when the file's content cannot be used.
        """
        if str(weights).lower().endswith(SUFFIXES):
            return cls(open_weights(Path(weights), backend, device, threads))
        if str(weights) not in bundled_names():
            known = ", ".join(bundled_names()) or "none in this installation"
            raise UsageError(f"there are no weights {str(weights)!r}; bundled are {known}; a file ends in {', '.join(SUFFIXES)}")
        if backend not in _BUNDLED_SUFFIX:
            raise UsageError(f"there is no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
        with as_file(_ZOO / f"{weights}{_BUNDLED_SUFFIX[backend]}") as path:
            return cls(open_weights(path, backend, device, threads))

    @property
    def metadata(self) -> Metadata:
        """What the weights file says about itself."""
        return self.backend.metadata

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input, and its logits masks."""
        return self.backend.metadata.preprocessing

    def predict_logits(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network: uint8 H x W or H x W x 3 (RGB) -> logits float32 K x h x w, at the network's own size.

        `preprocessing.to_mask(logits, size)` makes the mask of them. Raises InputError when the weights give anything but finite
        logits of that shape.
        """
        logits = self.backend(self.preprocessing.to_input(image))[0]
        expected = (self.metadata.num_classes, self.preprocessing.height, self.preprocessing.width)
        if logits.shape != expected:
            raise InputError(f"the network gives logits of {logits.shape}, and its metadata promises {expected}; export it again")
        if not np.isfinite(logits).all():
            raise InputError("the network gives NaN or infinite logits: its weights are damaged; copy or train them again")
        return logits

    def __call__(self, image: str | PathLike[str] | NDArray[np.uint8], spacing: Spacing | None = None) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image : a path, or uint8 H x W or H x W x 3 (RGB).
        spacing : millimetres from a pixel to the next, (down, across); with it the lesions are measured in millimetres as well.

        Raises UsageError or InputError when the image cannot be read (see `read_image`) or the spacing is not positive.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        logits = self.predict_logits(pixels)
        probability = self.preprocessing.to_probability(logits, pixels.shape[:2])
        mask = self.preprocessing.binarise(probability)
        lesions = tuple(
            lesion
            for index, name in enumerate(self.metadata.classes)
            if name != BACKGROUND
            for lesion in measure(mask[index], probability[index], index, spacing)
        )
        if self.metadata.num_classes == 1:
            mask, probability = mask[0], probability[0]
        return Segmentation(mask, probability, lesions, self.metadata.classes)


def bundled_names() -> tuple[str, ...]:
    """The names of the weights that come with the package."""
    return tuple(sorted(entry.name.removesuffix(".onnx") for entry in _ZOO.iterdir() if entry.name.endswith(".onnx")))
