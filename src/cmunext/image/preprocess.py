"""Image -> network input, and logits -> mask: the only place in the program where either is done.

Training resizes with `Preprocessing.resize` and normalises on the device with `Preprocessing.scale_and_offset`, so a trained network
meets the same numbers when it segments.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf, isfinite, log
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError

CHANNEL_ORDERS = {"rgb": 3, "bgr": 3, "grey": 1}
LARGEST_SIDE = 1 << 14  # of a network's input, pixels; beyond it a description is taken for damaged
ACTIVATIONS = ("sigmoid", "softmax")

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input, and its logits a mask.

    Attributes
    ----------
    height, width : size of the network's input, pixels.
    channels : "rgb", "bgr" or "grey", the order in which the network is fed.
    mean, std : subtracted from and divided into channel values in [0, 1], in the order in which the network is fed.
    final_scale : multiplies the normalised input. 1, except for networks trained with the paper's released code,
        which divides by 255 a second time (1 / 255).
    activation : "sigmoid" (each class by itself) or "softmax" (one class a pixel).
    threshold : a sigmoid class is present where its probability is strictly greater.
    """

    height: int = 256
    width: int = 256
    channels: str = "rgb"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    final_scale: float = 1.0
    activation: str = "sigmoid"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.channels not in CHANNEL_ORDERS:
            raise InputError(f"preprocessing channels is {self.channels!r}; it must be one of {', '.join(CHANNEL_ORDERS)}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"preprocessing activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
        if not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in (self.height, self.width)):
            raise InputError(
                f"preprocessing size is {self.height} x {self.width}; both must be whole numbers in 1..{LARGEST_SIDE}"
            )
        for name in ("mean", "std", "final_scale", "threshold"):
            given = getattr(self, name)
            if not all(
                isinstance(value, int | float) and isfinite(value) for value in (given if name in ("mean", "std") else (given,))
            ):
                raise InputError(f"preprocessing {name} is {given}; it must be made of finite numbers")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != self.in_channels:
                raise InputError(f"preprocessing {name} has {len(values)} values; {self.channels} needs {self.in_channels}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise InputError(f"preprocessing std is {self.std}; every value must be positive")
        if not self.final_scale > 0:
            raise InputError(f"preprocessing final_scale is {self.final_scale}; it must be positive")
        if not 0 < self.threshold < 1:
            raise InputError(f"preprocessing threshold is {self.threshold}; it must lie between 0 and 1")

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: 3, or 1 for grey."""
        return CHANNEL_ORDERS[self.channels]

    @property
    def scale_and_offset(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The normalisation as one multiplication and one addition per channel: input = pixel * scale + offset; two float32 of (C,)."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (
            (self.final_scale / (255 * std)).astype(np.float32),
            (-self.final_scale * mean / std).astype(np.float32),
        )

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Choose the channels and resize (bilinear): uint8 H x W or H x W x 3 (RGB) -> uint8 height x width x C."""
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
            raise InputError(f"an image must be uint8 of H x W or H x W x 3 (RGB); this one is {image.dtype} of {image.shape}")
        if image.ndim == 3 and self.channels != "rgb":
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if self.channels == "grey" else cv2.COLOR_RGB2BGR)
        resized = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        if image.ndim == 2 and self.channels != "grey":
            resized = cv2.cvtColor(resized, cv2.COLOR_GRAY2RGB)  # three equal channels only now: one is resized faster
        return resized.reshape(self.height, self.width, self.in_channels)

    def to_input(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Image -> network input: uint8 H x W or H x W x 3 (RGB) -> float32 1 x C x height x width, normalised."""
        scale, offset = self.scale_and_offset
        planes = np.ascontiguousarray(self.resize(image).transpose(2, 0, 1))  # HWC -> CHW, while a value is a byte
        return (planes * scale[:, None, None] + offset[:, None, None])[None]

    def to_probability(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Logits of one image -> probabilities at another size: K x h x w -> float32 K x H x W in [0, 1], `size` = (H, W).

        The logits are resized (bilinear), then the activation is applied.
        """
        resized = _resized(logits, size)
        if self.activation == "sigmoid":
            return _sigmoid_in_place(resized)
        exponentials = np.exp(resized - resized.max(axis=0))
        return exponentials / exponentials.sum(axis=0)

    def to_mask(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Logits of one image -> mask at native size: K x h x w -> bool K x H x W, `size` = (H, W)."""
        return self.to_foreground(logits, size)[0]

    def to_foreground(self, logits: NDArray[np.float32], size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """The mask, and the probabilities where it is true: K x h x w -> bool and float32 K x H x W, `size` = (H, W).

        The same numbers as `to_probability` and `binarise` give, in less time: most of an image is background, where a sigmoid need not be
        worked out. There the probabilities may be 0 instead of theirs.
        """
        if self.activation != "sigmoid":
            probability = self.to_probability(logits, size)
            return self.binarise(probability), probability
        resized = _resized(logits, size)
        mask, probability = np.zeros(resized.shape, np.bool_), np.zeros(resized.shape, np.float32)
        below = self.threshold - 1e-6  # further than float32 errs
        limit = log(below / (1 - below)) if below > 0 else -inf
        for index, plane in enumerate(resized):
            left, top, across, down = cv2.boundingRect((plane > limit).view(np.uint8))
            window = (index, slice(top, top + down), slice(left, left + across))
            probability[window] = _sigmoid_in_place(resized[window].copy())
            mask[window] = self.binarise(probability[window])
        return mask, probability

    def binarise(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Probabilities K x H x W -> bool K x H x W: above `threshold` (sigmoid), or the largest (softmax)."""
        if self.activation == "sigmoid":
            return probability > self.threshold
        return np.arange(len(probability))[:, None, None] == probability.argmax(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The record from `to_dict`'s values. Raises InputError on an unknown or ill-typed value."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise InputError(f"preprocessing has the unknown entry {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
        try:
            typed: dict[str, Any] = {key: tuple(value) if key in ("mean", "std") else value for key, value in values.items()}
            return cls(**typed)
        except (TypeError, OverflowError) as error:
            raise InputError(f"preprocessing cannot be read: {error}") from error


def _resized(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    height, width = size
    resized = np.empty((len(logits), height, width), np.float32)
    for plane, large in zip(logits, resized, strict=True):
        cv2.resize(np.asarray(plane, np.float32), (width, height), dst=large, interpolation=cv2.INTER_LINEAR)
    return resized


def _sigmoid_in_place(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1 + tanh(x / 2)) / 2, which never overflows. In place, since at an image's own size each new array costs as much as its values."""
    x *= 0.5
    np.tanh(x, out=x)
    x += 1
    x *= 0.5
    return x


DEFAULT = Preprocessing()
PAPER = Preprocessing(channels="bgr", final_scale=1 / 255)  # RGB statistics on BGR channels, and 255 divided out twice
