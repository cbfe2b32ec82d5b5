"""Random changes of image and mask, on uint8 arrays at the network's size, by the generator that is given and nothing else."""

from dataclasses import dataclass
from functools import partial
from math import inf

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
    mirror : probability of left to right alone, which leaves above what was above: in ultrasound, depth.
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
    mirror: float = 0.0
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
        for name in ("rotate90", "flip", "mirror", "affine", "intensity", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation.{name} is {getattr(self, name)}; a probability lies in 0..1")
        for name, largest in (("rotation", 180), ("shift", 1), ("brightness", 1), ("noise", 1)):
            if not 0 <= getattr(self, name) <= largest:
                raise UsageError(f"augmentation.{name} is {getattr(self, name)}; it must lie in 0..{largest} (0 switches it off)")
        for name in ("scale", "contrast", "gamma"):
            if not 1 <= getattr(self, name) < inf:
                raise UsageError(
                    f"augmentation.{name} is {getattr(self, name)}; it is a finite factor of at least 1 (1 switches it off)"
                )


@dataclass(frozen=True)
class Change:
    """What happens to one training image, drawn but not yet applied; None leaves out what does not happen.

    Attributes
    ----------
    upside_down, left_to_right, transposed : flips, and then a transposition or not: an element of the square's symmetries.
    matrix : then a warp: float64 2 x 3, from pixel (x, y) of the image before to that of the image after; beyond the edge is black.
    levels : then a look-up of grey levels: uint8 of 256.
    noise : then Gaussian noise of this standard deviation in grey levels, alike in every channel; 0 for none.
    """

    upside_down: bool
    left_to_right: bool
    transposed: bool
    matrix: NDArray[np.float64] | None = None
    levels: NDArray[np.uint8] | None = None
    noise: float = 0.0


def draw(augmentation: Augmentation, size: tuple[int, int], generator: np.random.Generator) -> Change:
    """A random change for an image of height and width `size`."""
    transposed, upside_down, left_to_right = _rotation_and_flip(augmentation, generator)
    matrix, levels, noise = None, None, 0.0
    if augmentation.affine and generator.random() < augmentation.affine:
        matrix = _warp(augmentation, size, generator)
    if augmentation.intensity and generator.random() < augmentation.intensity:
        levels = _levels(augmentation, generator)
        noise = 255 * augmentation.noise * generator.random() if augmentation.noise else 0.0
    return Change(upside_down, left_to_right, transposed, matrix, levels, noise)


def augment(
    image: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    augmentation: Augmentation,
    generator: np.random.Generator,
    beyond: NDArray[np.uint8] | int = 0,
) -> View:
    """One training view: image H x W x C and mask variants V x H x W x K (see `dataset.Cases`) -> H x W x C and H x W x K.

    beyond : uint8 K, the classes of what is moved in from beyond the edge, which is black; 0 for none.
    """
    height, width = image.shape[:2]
    change = draw(augmentation, (height, width), generator)
    mask = masks[mask_variant(change, len(masks))]
    rows, columns = slice(None, None, -1 if change.upside_down else 1), slice(None, None, -1 if change.left_to_right else 1)
    image, mask = image[rows, columns], mask[rows, columns]
    if change.transposed:
        image, mask = image.transpose(1, 0, 2), mask.transpose(1, 0, 2)
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    if change.matrix is not None:
        warp = partial(cv2.warpAffine, M=change.matrix, dsize=(width, height), borderMode=cv2.BORDER_CONSTANT)
        image = warp(image, flags=cv2.INTER_LINEAR).reshape(image.shape)
        mask = warp(mask ^ beyond, flags=cv2.INTER_NEAREST).reshape(mask.shape) ^ beyond
    if change.levels is not None:
        image = change.levels[image]
    if change.noise:
        noise = change.noise * generator.standard_normal((height, width, 1), np.float32)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return image, mask


def mask_variant(change: Change, variants: int) -> int:
    """Which of a case's mask variants was sampled under the flips of a change."""
    return (2 * change.upside_down + change.left_to_right) % variants


def cutmix(view: View, other: View, generator: np.random.Generator) -> View:
    """A view with a rectangle of another, image and mask alike (Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899).

    A mask is pasted like the image, so no label has to be mixed.

    Parameters
    ----------
    view, other : image H x W x C and mask H x W x K of one size, as `augment` gives; neither is changed.
    """
    top, bottom, left, right = cutmix_rectangle(view[0].shape[:2], generator)
    (image, mask), rectangle = (array.copy() for array in view), (slice(top, bottom), slice(left, right))
    image[rectangle], mask[rectangle] = other[0][rectangle], other[1][rectangle]
    return image, mask


def cutmix_rectangle(size: tuple[int, ...], generator: np.random.Generator) -> tuple[int, int, int, int]:
    """The rectangle (top, bottom, left, right) that CutMix pastes into an image of height and width `size`.

    As in the paper: it has the image's proportions and a share of its area that is uniform in 0..1, its centre is uniform over the
    image, and what lies beyond the edge is cut off.
    """
    side = np.sqrt(generator.random())  # as a fraction of the image's
    edges = []
    for length in size:
        centre, half = generator.random() * length, side * length / 2
        edges += [max(round(centre - half), 0), min(round(centre + half), length)]
    top, bottom, left, right = edges
    return top, bottom, left, right


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
    if augmentation.mirror and generator.random() < augmentation.mirror:
        left_to_right = not left_to_right
    return transposed, upside_down, left_to_right


def _warp(augmentation: Augmentation, size: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float64]:
    height, width = size
    angle = generator.uniform(-augmentation.rotation, augmentation.rotation)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, _factor(augmentation.scale, generator))
    matrix[:, 2] += generator.uniform(-augmentation.shift, augmentation.shift, 2) * (width, height)
    return matrix


def _levels(augmentation: Augmentation, generator: np.random.Generator) -> NDArray[np.uint8]:
    levels = (np.arange(256) / 255) ** _factor(augmentation.gamma, generator)
    levels = (levels - 0.5) * _factor(augmentation.contrast, generator) + 0.5
    levels = levels + generator.uniform(-augmentation.brightness, augmentation.brightness)
    return np.clip(np.rint(255 * levels), 0, 255).astype(np.uint8)


def _factor(largest: float, generator: np.random.Generator) -> float:
    return float(np.exp(generator.uniform(-1, 1) * np.log(largest)))
