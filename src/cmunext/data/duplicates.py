"""Images that show the same frame: equal pixel by pixel, or nearly so (cropped, rescaled, mirrored, other gain, compressed, marked).

`fingerprint` proposes pairs, `align` confirms them; here they become pairs with names, and clusters. A cluster is what is linked by
confirmed pairs: its first and last image may differ more than any pair in it, as the frames of a sweep do.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunext.data.align import SAME_FRAME, align
from cmunext.data.fingerprint import HORIZONTAL, PLAIN, VERTICAL, Fingerprint, Progress, fingerprint, propose
from cmunext.data.layout import Layout
from cmunext.data.table import table_content
from cmunext.errors import InputError, UsageError
from cmunext.image.files import plain, read_image, read_mask

Clusters = tuple[tuple[str, ...], ...]

NEAR, EXACT, NONE = "near", "exact", "none"
SEARCHES = (NEAR, EXACT, NONE)
MIN_SIMILARITY = 0.6  # below, images of different patients would pass


@dataclass(frozen=True)
class Pair:
    """Two cases that show the same frame.

    Attributes
    ----------
    first, second : their names.
    equal : pixel by pixel, once grey in a colour file counts as grey.
    mirror : how the first is mirrored to look like the second: "", "horizontal" or "vertical".
    correlation : of the aligned tissue (see `align.Alignment`); 1 for equal images.
    overlap : how much of the image that shows less the other shows too, 0 to 1.
    scale : what is 1 pixel long in the first is so many pixels long in the second.
    matrix : float64 2 x 3, takes (x, y, 1) of the first, mirrored, to the second, pixels.
    agreement : IoU of the two masks, the first laid on the second; None where that was not asked for or cannot be had.
    """

    first: str
    second: str
    equal: bool
    mirror: str = PLAIN
    correlation: float = 1.0
    overlap: float = 1.0
    scale: float = 1.0
    matrix: NDArray[np.float64] = field(default_factory=lambda: np.eye(2, 3), repr=False, compare=False)
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The pair as plain values, for JSON."""
        return {**asdict(self), "matrix": self.matrix.tolist()}


def digest(image: NDArray[np.uint8]) -> bytes:
    """The same for two images exactly when they are equal pixel by pixel."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()


def check(search: str, similarity: float) -> None:
    """Raises UsageError for a search that is none of SEARCHES, and for a similarity that cannot be reached or says nothing."""
    if search not in SEARCHES:
        raise UsageError(f"the search for duplicates is {search!r}; it must be one of {', '.join(SEARCHES)}")
    if not MIN_SIMILARITY <= similarity <= 1:
        raise UsageError(f"the similarity is {similarity}; it must lie between {MIN_SIMILARITY} and 1, such as {SAME_FRAME}")


def find(
    digests: Mapping[str, bytes],
    prints: Mapping[str, Fingerprint],
    similarity: float = SAME_FRAME,
    progress: Progress = iter,
) -> tuple[Pair, ...]:
    """The pairs among cases, sorted by name.

    Equal images are paired with the first of them, which alone is compared with the others: a thousand equal images make 999 pairs.

    Parameters
    ----------
    digests : case -> `digest` of its image.
    prints : case -> its fingerprint; near duplicates are sought among the cases that have one.
    similarity : the correlation that makes a near duplicate. The default takes copies of a frame, and successive frames of a
        sweep that hardly moved; 0.7 also takes frames a moment apart.
    progress : shown for proposing, then for confirming.
    """
    groups: dict[bytes, list[str]] = defaultdict(list)
    for case in sorted(digests):
        groups[digests[case]].append(case)
    pairs = [Pair(first, other, equal=True) for first, *others in groups.values() for other in others]
    cases = [first for first, *_ in groups.values() if first in prints]
    proposals = propose([prints[case] for case in cases], progress)
    best: dict[tuple[int, int], Pair] = {}
    for proposal in progress(proposals):
        first, second = cases[proposal.first], cases[proposal.second]
        found = align(prints[first].mirrored(proposal.mirror), prints[second], similarity)
        before = best.get((proposal.first, proposal.second))
        if found and not (before and before.correlation >= found.correlation):
            scale = float(np.sqrt(abs(np.linalg.det(found.matrix[:, :2]))))
            best[proposal.first, proposal.second] = Pair(
                first, second, False, proposal.mirror, found.correlation, found.overlap, scale, found.matrix
            )
    return tuple(sorted([*pairs, *best.values()], key=lambda pair: (pair.first, pair.second)))


def clusters(pairs: Iterable[Pair]) -> Clusters:
    """The cases that pairs link, directly or through others; each cluster sorted, and all of them by their first case."""
    return linked((pair.first, pair.second) for pair in pairs)


def linked(pairs: Iterable[tuple[str, str]]) -> Clusters:
    """`clusters` of plain pairs of names; a name that is paired with itself alone is a cluster of one."""
    member_of: dict[str, list[str]] = {}
    for first, second in pairs:
        one, other = (member_of.setdefault(case, [case]) for case in (first, second))
        if one is not other:
            one.extend(other)
            member_of.update((case, one) for case in other)
    return tuple(sorted({tuple(sorted(cluster)) for cluster in member_of.values()}))


def duplicates(
    layout: Layout, names: Iterable[str], search: str = NEAR, similarity: float = SAME_FRAME, progress: Progress = iter
) -> Clusters:
    """Clusters of cases that show the same frame.

    Raises
    ------
    UsageError : see `check`.
    InputError : an image cannot be read.
    """
    check(search, similarity)
    if search == NONE:
        return ()
    digests, prints = {}, {}
    for name in progress(list(names)):
        image = plain(read_image(layout.image(name)))
        digests[name] = digest(image)
        if search == NEAR:
            prints[name] = fingerprint(image)
    return clusters(find(digests, prints, similarity, progress))


def with_agreement(layout: Layout, pair: Pair) -> Pair:
    """The pair with the IoU of its masks, all classes together, over what both images show.

    It is None when a mask is missing or unreadable, or when both are empty there.
    """
    try:
        first, second = (np.stack([read_mask(path) for path in layout.masks(case)]) for case in (pair.first, pair.second))
    except (InputError, ValueError):  # ValueError: the masks of one case differ in size
        return pair
    one, covered = laid(first, pair, second.shape[1:])
    one, two = one & covered, second & covered
    union = np.count_nonzero(one | two)
    return replace(pair, agreement=np.count_nonzero(one & two) / union) if union else pair


def laid(masks: NDArray[np.bool_], pair: Pair, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks K x H x W of a pair's first case as they lie on the second, of height x width; and where the first covers it."""
    planes = [onto(mask.astype(np.uint8) * np.uint8(255), pair, size) > 127 for mask in masks]
    return np.stack(planes), onto(np.full(masks.shape[1:], 255, np.uint8), pair, size) > 127


def onto(image: NDArray[np.uint8], pair: Pair, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image, H x W or H x W x 3, of a pair's first case as it lies on the second, of height x width; black where it does not reach."""
    if pair.mirror:
        image = np.ascontiguousarray(np.flip(image, {HORIZONTAL: 1, VERTICAL: 0}[pair.mirror]))
    return cv2.warpAffine(image, pair.matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)


def groups_content(names: Sequence[str], found: Clusters) -> bytes:
    """A table of the columns case and group, as `cmunext split --group FILE` reads it; a case without duplicate is its own group."""
    first_of = {case: cluster[0] for cluster in found for case in cluster}
    return table_content({name: {"group": first_of.get(name, name)} for name in names}, ["group"])
