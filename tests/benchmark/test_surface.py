"""HD95 and surface Dice against brute force, and shapes whose distances are known."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (the extra [train] brings it)")

from cmunext.benchmark.surface import hd95, outline, surface_dice, surface_distances
from cmunext.errors import InputError, UsageError


def blob(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A few discs, some cut by the image's edge."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(generator.integers(1, 4)):
        row, column = generator.uniform(0, shape[0]), generator.uniform(0, shape[1])
        mask |= (rows - row) ** 2 + (columns - column) ** 2 <= generator.uniform(1, 12) ** 2
    return mask


def by_hand(start: np.ndarray, end: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Every pair of outline pixels, without a distance transform."""

    def points(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner) * np.array(spacing)

    return np.sqrt(((points(start)[:, None] - points(end)[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("seed", range(5))
def test_distances_by_hand(seed, spacing):
    generator = np.random.default_rng(seed)
    prediction, truth = blob(generator, (37, 52)), blob(generator, (37, 52))
    forth, back = surface_distances(prediction, truth, spacing)
    np.testing.assert_allclose(forth, by_hand(prediction, truth, spacing), rtol=1e-12)
    np.testing.assert_allclose(back, by_hand(truth, prediction, spacing), rtol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("seed", range(50, 54))
def test_scores_by_hand(seed, spacing):
    generator = np.random.default_rng(seed)
    prediction, truth = blob(generator, (64, 80)), blob(generator, (64, 80))
    both = by_hand(prediction, truth, spacing), by_hand(truth, prediction, spacing)
    # Of n sorted distances the 95th percentile lies at place 0.95 (n - 1), between two of them in proportion
    expected = max(np.interp(0.95 * (len(one) - 1), range(len(one)), sorted(one)) for one in both)
    assert hd95(prediction, truth, spacing) == pytest.approx(expected, rel=1e-12)
    for tolerance in (0.0, 1.0, 2.0, 5.0):
        expected = sum(distance <= tolerance for one in both for distance in one) / sum(map(len, both))
        assert surface_dice(prediction, truth, tolerance, spacing) == pytest.approx(expected, rel=1e-12)


def test_known_shapes():
    square, moved = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    square[5:10, 5:10] = True
    moved[5:10, 8:13] = True
    assert outline(square).sum() == 16
    assert hd95(square, square) == 0
    assert hd95(square, moved) == 3
    assert surface_dice(square, moved, 3) == 1
    assert hd95(square, moved, spacing=(1, 0.5)) == 1.5
    pixel, far = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    pixel[0, 0] = far[3, 4] = True
    assert hd95(pixel, far) == 5
    assert (surface_dice(pixel, far, 4.9), surface_dice(pixel, far, 5)) == (0, 1)


def test_empty_and_full_masks():
    empty, full = np.zeros((6, 7), bool), np.ones((6, 7), bool)
    assert (hd95(empty, empty), surface_dice(empty, empty)) == (0, 1)
    assert (hd95(full, empty), surface_dice(full, empty)) == (math.inf, 0)
    assert (hd95(empty, full), surface_dice(empty, full)) == (math.inf, 0)
    assert (hd95(full, full), surface_dice(full, full)) == (0, 1)
    assert outline(full).sum() == 2 * 6 + 2 * 7 - 4  # beyond the image is outside


def test_wrong_calls_are_named():
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        hd95(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(UsageError, match="-1"):
        surface_dice(np.ones((2, 2)), np.ones((2, 2)), tolerance=-1)
    with pytest.raises(UsageError, match="0"):
        hd95(np.ones((2, 2)), np.ones((2, 2)), spacing=(1, 0))
