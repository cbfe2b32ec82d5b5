"""Phantoms: repeatable, physically plausible, and their truth is where the lesion is."""

import cv2
import numpy as np
import pytest

from cmunext.errors import UsageError
from cmunext.phantom import KINDS, LOOKS, SHARES, _speckle, simulate

PHANTOMS = {seed: simulate(seed, 236, 284) for seed in range(12)}


def test_the_same_seed_gives_the_same_image_and_another_one_another() -> None:
    image, truth = simulate(3, 236, 284)
    np.testing.assert_array_equal(image, PHANTOMS[3][0])
    np.testing.assert_array_equal(truth, PHANTOMS[3][1])
    assert (image != PHANTOMS[4][0]).mean() > 0.5


def test_form_and_size() -> None:
    image, truth = simulate(0)
    assert (image.dtype, image.shape) == (np.uint8, (472, 568))
    assert (truth.dtype, truth.shape) == (np.bool_, (472, 568))
    for shape in ((64, 64), (300, 100), (100, 300)):
        image, truth = simulate(1, *shape)
        assert image.shape == truth.shape == shape
        assert truth.any()
        assert image.std() > 10
    with pytest.raises(UsageError, match="too small"):
        simulate(0, 63, 100)


@pytest.mark.parametrize("seed", PHANTOMS)
def test_the_lesion_is_one_piece_inside_the_image_and_darker_than_its_surroundings(seed: int) -> None:
    image, truth = PHANTOMS[seed]
    pieces, _ = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
    assert pieces == 2  # with the background
    assert truth[1:-1, 1:-1].sum() == truth.sum()
    assert 0.005 < truth.mean() < 0.25
    ring = cv2.dilate(truth.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool) & ~truth
    assert image[truth].mean() < image[ring].mean() - 15


def test_grey_levels_fall_with_depth_and_use_the_range() -> None:
    mean = np.mean([image for image, _ in PHANTOMS.values()], axis=0)
    assert mean[:40].mean() > mean[100:140].mean() > mean[-40:].mean() + 20
    assert 60 < mean.mean() < 120
    assert all((image == 255).mean() < 0.05 for image, _ in PHANTOMS.values())


def test_speckle_of_one_look_would_be_rayleigh() -> None:
    """The power of n independent looks is a gamma variate of shape n: mean 1 and coefficient of variation 1 / sqrt(n)."""
    random = np.random.default_rng(0)
    power = _speckle(random, np.zeros((400, 600), np.float32), 40 / 600)
    row = power[136]  # near the focus, where a single width of the spread function counts
    assert power.mean() == pytest.approx(1, rel=0.35)  # mixing two widths, away from the focus, loses some power
    assert row.std() / row.mean() == pytest.approx(1 / np.sqrt(LOOKS), rel=0.2)


def test_stronger_echoes_are_brighter_by_as_many_decibels() -> None:
    flat = np.zeros((300, 300), np.float32)
    one, ten = (_speckle(np.random.default_rng(1), flat + level, 40 / 300) for level in (0, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-4)


def test_every_kind_occurs_and_shares_are_a_distribution() -> None:
    assert set(SHARES) == set(KINDS)
    assert sum(SHARES.values()) == pytest.approx(1)
