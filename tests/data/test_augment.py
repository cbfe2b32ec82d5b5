"""Augmentation: the paper's flips and turns exactly, and the other changes within their limits."""

import cv2
import numpy as np
import pytest

from cmunext.data.augment import FLIP_CODES, Augmentation, augment, cutmix
from cmunext.errors import UsageError


class Scripted:
    """A generator that answers as told."""

    def __init__(self, *answers: float):
        self.answers = list(answers)

    def random(self) -> float:
        return self.answers.pop(0)

    def integers(self, _high: int) -> int:
        return int(self.answers.pop(0))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [None, 0, 1, 2])
def test_turn_and_flip_before_resizing_as_the_paper_does(turns: int, flip: int | None) -> None:
    """Against NumPy's own rotation and flip of the native mask, resized afterwards."""
    side, size = 51, 32
    generator = np.random.default_rng(7)
    native = generator.integers(0, 2, (side, side), dtype=np.uint8)
    shrink = lambda array: cv2.resize(np.ascontiguousarray(array), (size, size), interpolation=cv2.INTER_NEAREST)  # noqa: E731
    axes = [(), (1,), (0,), (0, 1)]
    variants = np.stack([np.flip(shrink(np.flip(native, ax)), ax) for ax in axes])[..., None]

    answers = [0.0, turns, *((0.0, flip) if flip is not None else (0.9,))]
    _, mask = augment(np.zeros((size, size, 3), np.uint8), variants, Augmentation(), Scripted(*answers))

    expected = np.rot90(native, turns)
    if flip is not None:
        upside_down, left_to_right = FLIP_CODES[flip]
        expected = np.flip(expected, [axis for axis, on in enumerate((upside_down, left_to_right)) if on])
    np.testing.assert_array_equal(mask[..., 0], shrink(expected))


def test_image_and_mask_move_together() -> None:
    strong = Augmentation(affine=1.0, rotation=30, scale=1.3, shift=0.1)
    mask = np.zeros((64, 64, 1), np.uint8)
    mask[20:40, 10:30] = 1
    for seed in range(20):
        image, moved = augment(np.repeat(200 * mask, 3, -1), mask[None], strong, np.random.default_rng(seed))
        agreement = ((image[..., 0] > 100) == (moved[..., 0] > 0)).mean()
        assert agreement > 0.985
        assert set(np.unique(moved)) <= {0, 1}


def test_what_is_moved_in_is_background() -> None:
    """Every pixel belongs to one class before, so it does after; without a background what is moved in belongs to none."""
    moved = Augmentation(affine=1.0, rotation=30, scale=1.5, shift=0.2)
    mask = np.zeros((64, 48, 2), np.uint8)
    mask[20:40, 10:30, 0] = 1
    mask[..., 1] = 1 - mask[..., 0]
    moved_in = 0
    for seed in range(20):
        changed = [
            augment(mask[..., :1], mask[None], moved, np.random.default_rng(seed), beyond)[1]
            for beyond in (np.array([0, 1], np.uint8), 0)
        ]
        np.testing.assert_array_equal(changed[0].sum(-1), 1)
        np.testing.assert_array_equal(changed[0][..., 0], changed[1][..., 0])
        moved_in += int((changed[1].sum(-1) == 0).sum())
    assert moved_in > 20 * 64


def test_shifts_are_shares_of_each_side() -> None:
    moved = Augmentation(rotate90=0, flip=0, affine=1.0, rotation=0, scale=1.0, shift=0.25)
    mask = np.zeros((1, 32, 128, 1), np.uint8)
    mask[0, 14:18, 60:68] = 1
    image = np.zeros((32, 128, 3), np.uint8)
    found = [np.argwhere(augment(image, mask, moved, np.random.default_rng(seed))[1][..., 0]).mean(0) for seed in range(40)]
    down, right = np.abs(np.array(found) - (15.5, 63.5)).max(0)
    assert 6 < down <= 8 + 0.5  # of 32 pixels
    assert 24 < right <= 32 + 0.5  # of 128


def test_intensity_changes_leave_the_mask_and_are_alike_in_all_channels() -> None:
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8), 3, -1)
    mask = np.ones((1, 32, 32, 1), np.uint8)
    changes = Augmentation(rotate90=0, flip=0, intensity=1.0, brightness=0.2, contrast=1.3, gamma=1.3, noise=0.05)
    changed, same = augment(image, mask, changes, np.random.default_rng(3))
    np.testing.assert_array_equal(same, mask[0])
    np.testing.assert_array_equal(changed[..., 0], changed[..., 2])
    assert (changed != image).mean() > 0.5


def test_a_mirror_leaves_above_what_was_above() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    masks = np.stack([image, image[:, ::-1], image[::-1], image[::-1, ::-1]])  # as `Cases` has them: sampled under each flip
    always, seen = Augmentation(rotate90=0, flip=0, mirror=1), set()
    for seed in range(20):
        mirrored, mask = augment(image, masks, always, np.random.default_rng(seed))
        np.testing.assert_array_equal(mirrored, image[:, ::-1])
        np.testing.assert_array_equal(mask, masks[1][:, ::-1])
        half, _ = augment(image, masks, Augmentation(rotate90=0, flip=0, mirror=0.5), np.random.default_rng(seed))
        seen.add(half.tobytes())
    assert seen == {image.tobytes(), image[:, ::-1].tobytes()}


def test_off_means_untouched() -> None:
    image, mask = np.arange(48, dtype=np.uint8).reshape(4, 4, 3), np.eye(4, dtype=np.uint8)[None, :, :, None]
    same, same_mask = augment(image, mask, Augmentation(rotate90=0, flip=0), np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_mask, mask[0])


def test_cutmix_pastes_one_rectangle_of_image_and_mask_alike() -> None:
    """The first view is even and without lesion, the second odd and all lesion, so every pixel says where it is from."""
    first = (np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60, 2), np.uint8))
    second = (np.full((40, 60, 3), 201, np.uint8), np.ones((40, 60, 2), np.uint8))
    shares = []
    for seed in range(400):
        image, mask = cutmix(first, second, np.random.default_rng(seed))
        pasted = mask[..., 0] == 1
        np.testing.assert_array_equal(mask[..., 1], mask[..., 0])
        np.testing.assert_array_equal(image, np.where(pasted[..., None], second[0], first[0]))
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns)
        assert all(np.abs(np.diff(span.astype(int))).sum() <= 2 for span in (rows, columns))  # each one run of pixels
        shares.append(pasted.mean())
    assert first[0].max() == 100
    # of a side s = sqrt(u) about a uniform centre, s - s^2 / 4 lies inside; the mean of its square over uniform u is 77 / 240
    assert np.mean(shares) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.04)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match=r"flip is 1\.5"):
        Augmentation(flip=1.5)
    with pytest.raises(UsageError, match=r"scale is 0\.8"):
        Augmentation(scale=0.8)
    with pytest.raises(UsageError, match=r"cutmix is -0\.1"):
        Augmentation(cutmix=-0.1)
