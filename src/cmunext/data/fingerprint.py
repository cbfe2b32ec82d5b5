"""Proposing pairs of images that may show the same frame, by hashing what their local features look like.

Local features are SIFT (Lowe, IJCV 60 (2004) 91) without rotation, since copies of a frame are cropped, scaled and mirrored but hardly
turned. A mirrored image needs no second look at its pixels: mirroring only permutes the numbers of a descriptor. Descriptors are looked
up in tables of random hyperplane hashes (Charikar, STOC 2002), and what they hit votes for an image at a scale and an offset, so that
crops are found. The low frequencies of the whole image (a perceptual hash, kept as real numbers) propose what is too smooth for features.
Tables grow with the number of images, and no image proposes more than a fixed number of others: nothing grows with the square.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # hands on what it is given, and may show how far that has come

SIDE = 256  # pixels of the longest side of a thumbnail
GRID = (
    8  # features are taken from GRID x GRID cells of the thumbnail, at most PER_CELL of each, so that text cannot take them all
)
PER_CELL = 3
FREQUENCIES = 9  # of the whole image, along each axis
TABLES = 8
CROWD = 40  # a bucket with more features tells nothing, and is passed over; that many copies of one frame meet by the whole image
OCTAVE = 0.4  # width of the bins of scale in which votes meet, in octaves
OFFSET = 32  # and of those of offset, in pixels of a thumbnail
MIN_VOTES = 4
MAX_PARTNERS = 12  # proposed by votes for one image and mirroring; half as many by the whole image
MIN_WHOLE = 0.94  # correlation of the low frequencies

PLAIN, HORIZONTAL, VERTICAL = "", "horizontal", "vertical"
MIRRORS = (PLAIN, HORIZONTAL, VERTICAL)


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image, about 80 kilobytes.

    Attributes
    ----------
    size : height and width of the image itself, pixels.
    thumbnail : uint8 H x W, the grey image with its longest side scaled to 256.
    points : float32 N x 3, of each feature x, y and diameter, pixels of the thumbnail.
    descriptors : uint8 N x 128.
    whole : float32 F x F, the low frequencies of the image, unit norm, without the mean.
    """

    size: tuple[int, int]
    thumbnail: NDArray[np.uint8]
    points: Floats
    descriptors: NDArray[np.uint8]
    whole: Floats

    def mirrored(self, mirror: str) -> "Fingerprint":
        """The fingerprint of the mirrored image (one of MIRRORS)."""
        if mirror == PLAIN:
            return self
        axis = 1 if mirror == HORIZONTAL else 0
        points = self.points.copy()
        points[:, 1 - axis] = self.thumbnail.shape[axis] - 1 - points[:, 1 - axis]
        # 4 rows x 4 columns x 8 directions, 45 degrees each from the x axis: mirroring turns d into 180 - d, or into -d.
        cells = np.flip(self.descriptors.reshape(-1, 4, 4, 8), axis=1 + axis)
        directions = (4 * axis - np.arange(8)) % 8
        odd = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
        return Fingerprint(
            self.size,
            np.ascontiguousarray(np.flip(self.thumbnail, axis)),
            points,
            np.ascontiguousarray(cells[..., directions]).reshape(-1, 128),
            self.whole * (odd[None, :] if axis else odd[:, None]),
        )


@dataclass(frozen=True)
class Proposal:
    """Images `first` < `second` (positions), and how the first is to be mirrored, may show the same."""

    first: int
    second: int
    mirror: str


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of an image, uint8 H x W or H x W x 3 (RGB)."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = SIDE / max(height, width)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    thumbnail = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    points, descriptors = _features(thumbnail)
    return Fingerprint((height, width), thumbnail, points, descriptors, _whole(thumbnail))


def normalised(descriptors: NDArray[np.uint8]) -> Floats:
    """Descriptors as unit vectors whose products compare distributions (Hellinger; Arandjelovic and Zisserman, CVPR 2012)."""
    roots = np.sqrt(descriptors.astype(np.float32))
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-6)


def propose(prints: Sequence[Fingerprint], progress: Progress = iter) -> list[Proposal]:
    """Pairs that may show the same frame, each with a mirroring to try, sorted; at most 54 for each image."""
    found = chain(_by_votes(prints, progress), _by_whole(prints))
    # Mirroring is its own inverse: a pair is the same whichever of the two asked.
    pairs = {(min(first, second), max(first, second), mirror) for first, second, mirror in found}
    return [Proposal(*pair) for pair in sorted(pairs)]


def _features(thumbnail: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.uint8]]:
    levelled = cv2.createCLAHE(2.0, (8, 8)).apply(thumbnail)  # gain and shadows must not decide which features are strong
    detector = cv2.SIFT.create(contrastThreshold=0.02, edgeThreshold=12)
    room = np.full((GRID, GRID), PER_CELL)
    height, width = thumbnail.shape
    chosen, places = [], set()
    for point in sorted(detector.detect(levelled, None), key=lambda point: (-point.response, point.pt)):
        x, y = point.pt
        place = round(x, 1), round(y, 1), round(point.size, 1)
        row, column = min(int(y * GRID / height), GRID - 1), min(int(x * GRID / width), GRID - 1)
        if place in places or not room[row, column]:  # the detector repeats a point for each of its directions
            continue
        room[row, column] -= 1
        places.add(place)
        point.angle = 0
        chosen.append(point)
    if not chosen:
        return np.zeros((0, 3), np.float32), np.zeros((0, 128), np.uint8)
    chosen, descriptors = detector.compute(levelled, chosen)
    return np.array([(*point.pt, point.size) for point in chosen], np.float32), descriptors.astype(np.uint8)


def _whole(thumbnail: NDArray[np.uint8]) -> Floats:
    low = cv2.dct(cv2.resize(thumbnail, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))
    low = low[:FREQUENCIES, :FREQUENCIES].copy()
    low[0, 0] = 0
    return low / max(float(np.linalg.norm(low)), 1e-6)


def _by_whole(prints: Sequence[Fingerprint], block: int = 512) -> Iterator[tuple[int, int, str]]:
    """For each image those whose low frequencies correlate best, if well enough."""
    keep = min(MAX_PARTNERS // 2, len(prints) - 1)
    if keep < 1:
        return
    every = np.array([one.whole.ravel() for one in prints])
    for mirror in MIRRORS:
        asking = np.array([one.mirrored(mirror).whole.ravel() for one in prints])
        for start in range(0, len(prints), block):
            similar = asking[start : start + block] @ every.T
            rows = np.arange(len(similar))
            similar[rows, start + rows] = -1
            best = np.argpartition(-similar, keep - 1, axis=1)[:, :keep]
            for row, column in np.argwhere(np.take_along_axis(similar, best, 1) >= MIN_WHOLE):
                yield start + int(row), int(best[row, column]), mirror


def _by_votes(prints: Sequence[Fingerprint], progress: Progress) -> Iterator[tuple[int, int, str]]:
    """For each image those that most of its features vote for at one scale and offset."""
    counts = [len(one.points) for one in prints]
    total = sum(counts)
    if not total:
        return
    owner = np.repeat(np.arange(len(prints)), counts)
    points = np.concatenate([one.points for one in prints])
    index = _Index(prints, total)
    for number in progress(range(len(prints))):
        for mirror in MIRRORS:
            asking = prints[number].mirrored(mirror)
            queries, hits = index.look_up(asking.descriptors)
            other = owner[hits] != number
            votes = _agreeing(asking.points[queries[other]], points[hits[other]], owner[hits[other]])
            for partner in list(votes)[:MAX_PARTNERS]:
                yield number, partner, mirror


def _agreeing(asking: Floats, found: Floats, owners: Ints) -> dict[int, int]:
    """Image -> its most votes at one scale and offset, where there are at least MIN_VOTES; best first."""
    octaves = np.log2(found[:, 2] / asking[:, 2])
    near = np.abs(octaves) < 1.3
    asking, found, owners = asking[near], found[near], owners[near]
    step = np.round(octaves[near] / OCTAVE)
    offset = (found[:, :2] - asking[:, :2] * 2.0 ** (OCTAVE * step)[:, None]) / OFFSET
    best: dict[int, int] = {}
    for shift in ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)):  # overlapping bins: no agreement is cut by a border
        bins = np.floor(offset + shift).astype(np.int64) + 64  # offsets stay within 1.3 octaves of 256 pixels: 0 < bins < 128
        keys, votes = np.unique(
            ((owners * 16 + step.astype(np.int64) + 8) * 128 + bins[:, 0]) * 128 + bins[:, 1], return_counts=True
        )
        for image, count in zip((keys[votes >= MIN_VOTES] >> 18).tolist(), votes[votes >= MIN_VOTES].tolist(), strict=True):
            best[image] = max(best.get(image, 0), count)
    return dict(sorted(best.items(), key=lambda item: (-item[1], item[0])))


class _Index:
    """Tables in which features of a like descriptor fall into the same bucket."""

    def __init__(self, prints: Sequence[Fingerprint], total: int) -> None:
        # As many buckets as features, give or take, whatever their number: then buckets do not fill up as images are added.
        self.bits = min(max(math.ceil(math.log2(total)) + 1, 10), 30)
        means = [normalised(one.descriptors).mean(0) for one in prints if len(one.descriptors)]
        self.centre = np.mean(means, 0)
        self.planes = np.random.default_rng(0).standard_normal((128, TABLES * self.bits)).astype(np.float32)
        codes = np.concatenate([self._codes(one.descriptors) for one in prints])
        self.order = np.argsort(codes, axis=0, kind="stable").astype(np.int32)
        self.codes = np.take_along_axis(codes, self.order, 0)

    def look_up(self, descriptors: NDArray[np.uint8]) -> tuple[Ints, Ints]:
        """Positions of descriptors and of features (in the order of all images) that share a bucket, each pair once."""
        asked = self._codes(descriptors)
        pairs = [np.zeros(0, np.int64)]
        for table in range(TABLES):
            start = np.searchsorted(self.codes[:, table], asked[:, table], "left")
            count = np.searchsorted(self.codes[:, table], asked[:, table], "right") - start
            count[count > CROWD] = 0
            query = np.repeat(np.arange(len(asked)), count)
            place = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count) + start[query]
            pairs.append(query * len(self.codes) + self.order[place, table])
        found = np.unique(np.concatenate(pairs))
        return found // len(self.codes), found % len(self.codes)

    def _codes(self, descriptors: NDArray[np.uint8]) -> NDArray[np.uint32]:
        above = ((normalised(descriptors) - self.centre) @ self.planes > 0).reshape(-1, TABLES, self.bits)
        return (above @ (1 << np.arange(self.bits))).astype(np.uint32)
