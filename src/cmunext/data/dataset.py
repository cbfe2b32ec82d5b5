"""A list of cases as arrays: decoded and resized once, kept in a cache on disk, and held in memory as uint8.

The cache holds one file a case, named by what it was made from (the files' paths, sizes and times of change, and the
resizing), so a changed file simply misses its entry; lists that share cases share entries. It lies in `$CMUNEXT_CACHE`, by
default `~/.cache/cmunext`, never in the dataset folder, and can be deleted at any time.
"""

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.layout import Layout
from cmunext.data.table import ORIGINAL_COLUMN, dataset_table
from cmunext.errors import InputError
from cmunext.image.files import read_image, read_mask
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import BACKGROUND, image_digest
from cmunext.storage import cache_folder, replacing

CACHE_VERSION = 3  # goes up when the same files would give other arrays
FLIPS = ((False, False), (False, True), (True, False), (True, True))  # (upside down, left to right): the four variants of a mask


@dataclass(frozen=True)
class Cases:
    """Cases at the network's size.

    Attributes
    ----------
    names : N names.
    images : uint8 N x H x W x C, in the channel order of the preprocessing.
    masks : uint8 N x V x H x W x K of 0 and 1. V is 1, or 4 when the mask was sampled under each of `FLIPS` (see `load_cases`).
    image_digests : `metadata.image_digest` of each, from its native size; of a reduced copy, what the column `original` of cases.csv says.
    classes : K names.
    """

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    image_digests: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def beyond(self) -> NDArray[np.uint8]:
        """uint8 K of 0 and 1: what lies beyond the edge of an image belongs to the class called background, if there is one."""
        return np.array([name == BACKGROUND for name in self.classes], np.uint8)

    @property
    def digest(self) -> str:
        """SHA-256 of names and pixels: what a resumed run compares."""
        sha = hashlib.sha256("\n".join(self.names).encode())
        sha.update(self.images.data)
        sha.update(self.masks.data)
        return sha.hexdigest()


def load_cases(
    layout: Layout,
    names: Sequence[str],
    preprocessing: Preprocessing,
    *,
    masks_under_flips: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Cases:
    """Read the cases of a list, from the cache where they are there.

    Parameters
    ----------
    masks_under_flips : sample the masks as the paper's code does, which flips before it resizes with `cv2.INTER_NEAREST`: that
        sampling is not symmetric, so each flip gives another mask. False samples at pixel centres (`cv2.INTER_NEAREST_EXACT`),
        which commutes with flips.
    advance : called after every case, for a progress bar.

    Raises
    ------
    InputError : when a file of a case or cases.csv cannot be read, or a mask has another size than its image.
    """
    found = []
    for name in names:
        found.append(_cached(layout, name, preprocessing, masks_under_flips))
        advance()
    images, masks, digests = zip(*found, strict=True)
    table = dataset_table(layout.root)
    originals = tuple(original_of(name, table) or digest for name, digest in zip(names, digests, strict=True))
    return Cases(tuple(names), np.stack(images), np.stack(masks), originals, layout.class_names)


def original_of(name: str, table: Mapping[str, Mapping[str, str]]) -> str:
    """Digest of the image that a case's was made smaller from; "" where the dataset's table does not tell."""
    return table.get(name, {}).get(ORIGINAL_COLUMN, "")


def read_case(layout: Layout, name: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image (uint8 H x W or H x W x 3, RGB) and masks (bool K x H x W) of a case. Raises InputError, OSError."""
    image = read_image(layout.image(name))
    files = layout.masks(name)
    masks = [read_mask(file) for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != image.shape[:2]:
            raise InputError(
                f"{file} is {mask.shape[0]} x {mask.shape[1]} pixels and its image {image.shape[0]} x {image.shape[1]}; "
                "`cmunext prepare` brings them to one size"
            )
    return image, np.stack(masks)


def _cached(
    layout: Layout, name: str, preprocessing: Preprocessing, under_flips: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    files = [layout.image(name), *layout.masks(name)]
    stamps = [(str(file.resolve()), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    size = (preprocessing.height, preprocessing.width, preprocessing.channels)
    key = hashlib.sha256(repr((CACHE_VERSION, cv2.__version__, stamps, size, under_flips)).encode()).hexdigest()
    entry = cache_folder() / "cases" / key[:2] / f"{key[2:]}.npz"
    try:
        with np.load(entry, allow_pickle=False) as stored:
            return stored["image"], stored["mask"], str(stored["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or damaged: made again
        pass
    image, mask, digest = _decode(layout, name, preprocessing, under_flips)
    with replacing(entry) as temporary, temporary.open("wb") as stream:
        np.savez(stream, image=image, mask=mask, digest=digest)
    return image, mask, digest


def _decode(
    layout: Layout, name: str, preprocessing: Preprocessing, under_flips: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    native, masks = read_case(layout, name)
    digest = image_digest(native)
    stacked = masks.transpose(1, 2, 0).astype(np.uint8)  # KHW -> HWK
    if not under_flips:
        return preprocessing.resize(native), resize_mask(stacked, preprocessing, cv2.INTER_NEAREST_EXACT)[None], digest
    variants = [
        _flip(resize_mask(_flip(stacked, *flip), preprocessing, cv2.INTER_NEAREST), *flip)  # back, so all variants lie alike
        for flip in FLIPS
    ]
    return preprocessing.resize(native), np.stack(variants), digest


def resize_mask(mask: NDArray[np.uint8], preprocessing: Preprocessing, interpolation: int) -> NDArray[np.uint8]:
    """Masks at the network's size: uint8 H x W x K -> height x width x K."""
    resized = cv2.resize(np.ascontiguousarray(mask), (preprocessing.width, preprocessing.height), interpolation=interpolation)
    return resized.reshape(preprocessing.height, preprocessing.width, mask.shape[-1])


def _flip(array: NDArray[np.uint8], upside_down: bool, left_to_right: bool) -> NDArray[np.uint8]:
    return array[:: -1 if upside_down else 1, :: -1 if left_to_right else 1]
