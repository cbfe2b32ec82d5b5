"""Image -> Segmentation: the road that the command, the Python API, evaluation and the demo all take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_image
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends import BACKENDS, SUFFIXES, Backend, open_weights
from cmunext.inference.lesions import Lesion, Spacing, measure
from cmunext.inference.named_weights import weights_path
from cmunext.metadata import BACKGROUND, Metadata

DEFAULT_WEIGHTS = "cmunext-s-busi"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image, at the image's own size.

    Attributes
    ----------
    mask : bool H x W; K x H x W when the network knows K > 1 classes.
    lesions : the connected regions of every class but a "background", the largest of each class first.
    classes : the names of the classes.
    logits : of the network, float32 K x h x w, at its own size.
    preprocessing : what made the mask of them.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    lesions: tuple[Lesion, ...]
    classes: tuple[str, ...]
    logits: NDArray[np.float32] = field(repr=False)
    preprocessing: Preprocessing = field(repr=False)

    @cached_property
    def probability(self) -> NDArray[np.float32]:
        """Float32 in [0, 1], shaped as `mask`. Worked out when it is first asked for: files and videos are segmented without."""
        probability = self.preprocessing.to_probability(self.logits, self.mask.shape[-2:])
        return probability if self.mask.ndim == 3 else probability[0]


@dataclass(frozen=True)
class Segmenter:
    """A network with its preprocessing, ready for images. Make one with `Segmenter.load`.

    >>> segmentation = Segmenter.load("cmunext-s-busi")("image.png")
    """

    backend: Backend

    def __repr__(self) -> str:
        size = f"{self.preprocessing.height} x {self.preprocessing.width}"
        return f"Segmenter({self.metadata.network}, {size}, {self.backend.name} in {self.backend.precision})"

    @classmethod
    def load(
        cls,
        weights: str | PathLike[str] = DEFAULT_WEIGHTS,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        precision: str | None = None,
        streams: int | None = None,
        measure: bool = False,
    ) -> "Segmenter":
        """Load weights: a name (`named_weights.weight_names()`), or a file ending in .onnx, .safetensors, .pth or .pt.

        Parameters
        ----------
        backend : "onnxruntime", "openvino", "native" (our own, built on this machine), "torch", or "auto": by the file's suffix, and
            for .onnx (named weights too) onnxruntime, unless openvino, or native once it is built, was measured to be faster here.
        device : "cpu", "cuda", and with onnxruntime "tensorrt", "coreml" or "directml".
        threads : of the CPU; None leaves it to the runtime.
        precision : "float32", or with openvino and native "bfloat16". None is float32, but for "auto", which may take bfloat16 where it was seen
            to give the same masks. `backend.precision` tells.
        streams : images that openvino runs at the same time; None means one.
        measure : let "auto" measure, once for these weights on this machine. Takes seconds; worth it before many images.

        Raises
        ------
        UsageError : when there are no such weights, backend or device, or they do not go together.
        InputError : when the file's content cannot be used.
        """
        suffixes = BACKENDS[backend][1] if backend in BACKENDS else SUFFIXES
        path = weights_path(weights, *suffixes)
        return cls(open_weights(path, backend, device, threads, precision, streams, measure))

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
        return self.predict_batch(self.preprocessing.to_input(image))[0]

    def predict_batch(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network: float32 N x C x h x w, as `preprocessing.to_input` makes them -> logits float32 N x K x h x w.

        Raises InputError when the weights give anything but finite logits of that shape.
        """
        logits = self.backend(batch)
        expected = (len(batch), self.metadata.num_classes, self.preprocessing.height, self.preprocessing.width)
        if logits.shape != expected:
            raise InputError(f"the network gives logits of {logits.shape}, and its metadata promises {expected}; export it again")
        if not np.isfinite(logits).all():
            raise InputError("the network gives NaN or infinite logits: its weights are damaged; copy or train them again")
        return logits

    def predict_inputs(self, inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """`predict_batch` of inputs that come one by one, as `preprocessing.to_input` makes them; a single one is not copied."""
        return self.predict_batch(np.concatenate(inputs) if len(inputs) > 1 else inputs[0])

    def __call__(self, image: str | PathLike[str] | NDArray[np.uint8], spacing: Spacing | None = None) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image : a path, or uint8 H x W or H x W x 3 (RGB).
        spacing : millimetres from a pixel to the next, (down, across); with it the lesions are measured in millimetres as well.

        Raises UsageError or InputError when the image cannot be read (see `read_image`) or the spacing is not positive.
        """
        if not isinstance(image, (np.ndarray, str, PathLike)):
            raise UsageError(f"the image is a {type(image).__name__}; give a path, or a uint8 array H x W or H x W x 3 (RGB)")
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        return self.interpret(self.predict_logits(pixels), pixels.shape[:2], spacing)

    def interpret(self, logits: NDArray[np.float32], size: tuple[int, int], spacing: Spacing | None = None) -> Segmentation:
        """What the logits of one image, K x h x w, say at the image's own size (H, W). Raises UsageError when the spacing is none."""
        mask, probability = self.preprocessing.to_foreground(logits, size)
        lesions = tuple(
            lesion
            for index, name in enumerate(self.metadata.classes)
            if name != BACKGROUND
            for lesion in measure(mask[index], probability[index], index, spacing)
        )
        return Segmentation(
            mask[0] if self.metadata.num_classes == 1 else mask, lesions, self.metadata.classes, logits, self.preprocessing
        )
