"""What an overlay shows, and what it leaves alone."""

import numpy as np
import pytest

from cmunext.image.overlay import ORANGE, SKY, overlay

GREY = np.random.default_rng(0).integers(60, 200, (240, 320), dtype=np.uint8)
MASK = np.zeros((240, 320), bool)
MASK[80:160, 100:220] = True


def test_outside_nothing_changes_inside_the_fill_is_the_mixture_asked_for() -> None:
    drawn = overlay(GREY, MASK, opacity=0.25)
    assert drawn.shape == (240, 320, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:70], np.dstack([GREY[:70]] * 3))
    expected = 0.75 * GREY[90:150, 110:210, None] + 0.25 * np.array(ORANGE)
    assert np.abs(drawn[90:150, 110:210] - expected).max() <= 0.5


def test_every_level_is_mixed_as_the_formula_says() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3, axis=0).repeat(3, axis=1)
    drawn = overlay(levels, np.ones(levels.shape, bool), opacity=0.37)
    inside = np.s_[4:-4, 4:-4]  # the contour runs along the edge
    expected = np.round((1 - 0.37) * levels[inside][..., None] + 0.37 * np.array(ORANGE))
    np.testing.assert_array_equal(drawn[inside], expected)


def test_the_contour_has_the_colour_of_its_class() -> None:
    both = np.zeros((2, 240, 320), bool)
    both[0, 20:60, 20:60] = both[1, 150:200, 200:300] = True
    drawn = overlay(GREY, both)
    np.testing.assert_allclose(drawn[20, 40], ORANGE, atol=35)  # the line is antialiased
    np.testing.assert_allclose(drawn[150, 250], SKY, atol=35)
    named = overlay(GREY, both, colours=[(250, 2, 3)], opacity=0)
    np.testing.assert_allclose(named[[20, 150], [40, 250]], [(250, 2, 3)] * 2, atol=35)
    np.testing.assert_array_equal(named[30:50, 30:50], np.dstack([GREY[30:50, 30:50]] * 3))


def test_the_line_grows_with_the_image() -> None:
    def line_width(scale: int) -> int:
        mask = np.zeros((250 * scale, 250 * scale), bool)
        mask[:, 125 * scale :] = True
        drawn = overlay(np.full(mask.shape, 128, np.uint8), mask, opacity=0)
        return int((np.abs(drawn[125 * scale].astype(int) - ORANGE).sum(axis=1) < 100).sum())

    assert 1 <= line_width(1) <= 2
    assert 4 <= line_width(4) <= 8


def test_the_image_that_was_given_stays_as_it_was() -> None:
    colour = np.dstack([GREY] * 3)
    before = colour.copy()
    drawn = overlay(colour, MASK, labels=[("1", (160, 120))])
    np.testing.assert_array_equal(colour, before)
    assert (drawn[100:140, 140:180] == 255).any()  # the label


def test_an_empty_mask_changes_nothing_and_a_wrong_size_is_told() -> None:
    np.testing.assert_array_equal(overlay(GREY, np.zeros_like(MASK)), np.dstack([GREY] * 3))
    with pytest.raises(ValueError, match="resize one to the other"):
        overlay(GREY, MASK[1:])
