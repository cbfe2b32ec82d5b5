"""Contact sheets, pixel by pixel."""

import numpy as np
import pytest

from cmunext.image.overlay import ORANGE, SKY
from cmunext.image.sheet import CAPTION, MARGIN, contact_sheet, outlined, tile

WHITE = 255


@pytest.mark.parametrize(
    ("shape", "fitted"), [((200, 100), (100, 50)), ((50, 400), (25, 200)), ((20, 10), (100, 50)), ((1, 900), (1, 200))]
)
def test_a_picture_fills_its_box_and_keeps_its_shape(shape, fitted):
    picture = outlined(np.full(shape, 90, np.uint8), np.zeros((0, *shape), bool), (), (200, 100))
    assert picture.shape == (*fitted, 3)
    assert (picture == 90).all()


@pytest.mark.parametrize("scale", [1, 4])
def test_outlines_are_as_wide_at_any_size_of_the_image(scale):
    mask = np.zeros((2, 100 * scale, 100 * scale), bool)
    mask[0, :, 50 * scale :] = mask[1, 50 * scale :] = True
    picture = outlined(np.full(mask.shape[1:], 128, np.uint8), mask, (SKY, ORANGE), (300, 300)).astype(int)
    line = np.abs(picture[75] - SKY).sum(-1) < 100
    assert 1 <= line[100:200].sum() <= 2 and line[145:155].any()
    assert (np.abs(picture[145:155, 75] - ORANGE).sum(-1) < 100).any()
    assert (picture[30, 30] == 128).all()  # a contour only, no fill


def test_pictures_stand_at_the_foot_of_their_boxes_over_the_caption():
    pictures = [np.full((10, 30, 3), 7, np.uint8), np.full((20, 40, 3), 9, np.uint8)]
    drawn = tile(pictures, (40, 20), "named")
    width = 40 + 2 * MARGIN
    assert drawn.shape == (20 + CAPTION, 2 * width, 3)
    assert (drawn[10:20, MARGIN + 5 : MARGIN + 35] == 7).all() and (drawn[:10, :width] == WHITE).all()
    assert (drawn[:20, width + MARGIN : width + MARGIN + 40] == 9).all()
    assert (drawn[20:] < 100).any()  # letters
    blank = tile(pictures, (40, 20), "")
    assert (blank[20:] == WHITE).all()
    np.testing.assert_array_equal(tile(pictures, (40, 20), "é")[20:], tile(pictures, (40, 20), "?")[20:])


def test_tiles_in_rows_with_a_legend():
    tiles = [np.full((10, 200, 3), level, np.uint8) for level in (1, 2, 3)]
    sheet = contact_sheet(tiles, [("a", SKY), ("b", ORANGE)], columns=2, gap=6)
    assert sheet.shape == (20 + CAPTION, 406, 3)
    assert [sheet[5, 5, 0], sheet[5, 210, 0], sheet[15, 5, 0], sheet[5, 203, 0], sheet[15, 210, 0]] == [1, 2, 3, WHITE, WHITE]
    legend = sheet[20:].reshape(-1, 3)
    assert all((legend == colour).all(-1).sum() > 100 for colour in (SKY, ORANGE))
    assert contact_sheet(tiles[:1]).shape == (10, 200, 3)
