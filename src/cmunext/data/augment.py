"""Random changes of image and mask, on uint8 arrays at the network's size, by the generator that is given and nothing else."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError

ROTATIONS = {0: (False, False, False), 1: (True, False, True), 2: (False, True, True), 3: (True, True, False)}
View = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # image H x W x C and mask H x W x K
FLIP_CODES = ((True, True), (True, False), (False, True))  # both axes, upside down, left to right


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; 0 switches a change off.

    Attributes
    ----------
    rotate90 : probability of a rotation by 0, 90, 180 or 270 degrees, each as likely. Needs a square network input.
    flip : probability of a flip: upside down, left to right or both, each as likely.
    affine : probability of the next three together.
    rotation : largest rotation either way, degrees.
    scale : largest zoom either way, as a factor: 1.25 means 0.8 to 1.25, log-uniform.
    shift : largest shift either way along each axis, as a fraction of the side.
    intensity : probability of the next three together.
    brightness : largest shift either way, as a fraction of the full range.
    contrast : largest factor either way about mid-grey, as in `scale`.
    gamma : largest exponent either way, as in `scale`.
    noise : largest standard deviation of Gaussian noise, as a fraction of the full range.
    cutmix : probability of pasting a rectangle of another training case (see `cutmix`).
    """

    rotate90: float = 0.5
    flip: float = 0.5
    affine: float = 0.0
    rotation: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    intensity: float = 0.0
    brightness: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotate90", "flip", "affine", "intensity", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation.{name} is {getattr(self, name)}; a probability lies in 0..1")
        for name in ("scale", "contrast", "gamma"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"augmentation.{name} is {getattr(self, name)}; it is a factor of at least 1 (1 switches it off)"
                )


def augment(
    image: NDArray[np.uint8], masks: NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One training view: image H x W x C and mask variants V x H x W x K (see `dataset.Cases`) -> H x W x C and H x W x K."""
    transposed, upside_down, left_to_right = _rotation_and_flip(augmentation, generator)
    mask = masks[(2 * upside_down + left_to_right) % len(masks)]  # the variant that was sampled under this flip
    image, mask = (array[:: -1 if upside_down else 1, :: -1 if left_to_right else 1] for array in (image, mask))
    if transposed:
        image, mask = image.transpose(1, 0, 2), mask.transpose(1, 0, 2)
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    if augmentation.affine and generator.random() < augmentation.affine:
        image, mask = _warp(image, mask, augmentation, generator)
    if augmentation.intensity and generator.random() < augmentation.intensity:
        image = _change_intensity(image, augmentation, generator)
    return image, mask


def cutmix(view: View, other: View, generator: np.random.Generator) -> View:
    """A view with a rectangle of another, image and mask alike (Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899).

    As there: the rectangle has the image's proportions and a share of its area that is uniform in 0..1, its centre is uniform
    over the image, and what lies beyond the edge is cut off. A mask is pasted like the image, so no label has to be mixed.

    Parameters
    ----------
    view, other : image H x W x C and mask H x W x K of one size, as `augment` gives; neither is changed.
    """
    height, width = view[0].shape[:2]
    side = np.sqrt(generator.random())  # as a fraction of the image's
    spans = []
    for length in (height, width):
        centre, half = generator.random() * length, side * length / 2
        spans.append(slice(max(round(centre - half), 0), round(centre + half)))
    (image, mask), rectangle = (array.copy() for array in view), tuple(spans)
    image[rectangle], mask[rectangle] = other[0][rectangle], other[1][rectangle]
    return image, mask


def _rotation_and_flip(augmentation: Augmentation, generator: np.random.Generator) -> tuple[bool, bool, bool]:
    """A random element of the square's symmetries, as flips (upside down, left to right) followed by a transposition or not.

    The paper's augmentation: a rotation by k quarter turns with probability 0.5, then one of three flips with probability 0.5
    (PROTOCOL of the released code). A flip after a transposition is the other flip before it.
    """
    quarter_turns = int(generator.integers(4)) if generator.random() < augmentation.rotate90 else 0
    transposed, upside_down, left_to_right = ROTATIONS[quarter_turns]
    if generator.random() < augmentation.flip:
        flip = FLIP_CODES[generator.integers(3)]
        upside_down ^= flip[transposed]
        left_to_right ^= flip[not transposed]
    return transposed, upside_down, left_to_right


def _warp(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = image.shape[:2]
    angle = generator.uniform(-augmentation.rotation, augmentation.rotation)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, _factor(augmentation.scale, generator))
    matrix[:, 2] += generator.uniform(-augmentation.shift, augmentation.shift, 2) * (width, height)
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    warped_mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return warped.reshape(image.shape), warped_mask.reshape(mask.shape)


def _change_intensity(image: NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator) -> NDArray[np.uint8]:
    levels = (np.arange(256) / 255) ** _factor(augmentation.gamma, generator)
    levels = (levels - 0.5) * _factor(augmentation.contrast, generator) + 0.5
    levels = levels + generator.uniform(-augmentation.brightness, augmentation.brightness)
    table = np.clip(np.rint(255 * levels), 0, 255).astype(np.uint8)
    changed = table[image]
    if augmentation.noise:
        deviation = 255 * augmentation.noise * generator.random()
        noise = deviation * generator.standard_normal((*image.shape[:2], 1), np.float32)  # grey: alike in every channel
        changed = np.clip(np.rint(changed + noise), 0, 255).astype(np.uint8)
    return changed


def _factor(largest: float, generator: np.random.Generator) -> float:
    return float(np.exp(generator.uniform(-1, 1) * np.log(largest)))
