"""The worst cases, by name and as pictures."""

from pathlib import Path

import numpy as np
import pytest
from tests.bright import NAMES, brightness, with_second_class, write_cases

from cmunext.benchmark.evaluate import evaluate
from cmunext.benchmark.panels import PREDICTION, TRUTH, legend, panels
from cmunext.benchmark.worst import PER_SHEET, check_folder, worst_of, write_worst
from cmunext.data.layout import Layout
from cmunext.data.pictures import write_page
from cmunext.errors import UsageError
from cmunext.image.files import read_image, write_image, write_mask
from cmunext.image.overlay import COLOURS


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(write_cases(tmp_path / "data"))


def drawn(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a line of that colour."""
    return np.abs(picture.astype(int) - colour).sum(-1) < 60


def test_the_lowest_first(layout):
    evaluation = evaluate(brightness(), layout, NAMES)
    worst = worst_of(evaluation, 3)
    assert [one["case"] for one in worst] == ["malignant (1)", "benign (2)", "benign (1)"]
    assert worst[0]["class"] == "malignant"
    assert (worst[0]["iou"], worst[0]["dice"]) == (0, 0)
    truth = evaluation.counts.tp[2, 0] + evaluation.counts.fn[2, 0]
    assert worst[0]["truth_share"] == pytest.approx(truth / 8000)
    assert worst[0]["prediction_share"] == pytest.approx(evaluation.counts.fp[2, 0] / 8000)
    assert len(worst_of(evaluation, 99)) == 4
    assert worst_of(evaluation, 0) == []
    with pytest.raises(UsageError, match="-1"):
        worst_of(evaluation, -1)


def test_of_equal_scores_the_largest_lesion_first(layout, tmp_path):
    for name, side in (("small", 6), ("large", 30)):
        mask = np.zeros((60, 60), bool)
        mask[:side, :side] = True
        write_image(layout.root / f"images/{name}.png", np.full((60, 60), 10, np.uint8))
        write_mask(layout.root / f"masks/0/{name}.png", mask)
    evaluation = evaluate(brightness(), Layout.open(layout.root), ["small", "large"])
    assert [(one["case"], one["iou"]) for one in worst_of(evaluation, 2)] == [("large", 0), ("small", 0)]


def test_three_pictures_of_a_case(layout):
    image, truth, prediction = panels(brightness(), layout, "malignant (1)", (200, 200))
    assert image.shape == truth.shape == prediction.shape == (200, 160, 3)
    assert not drawn(image, TRUTH).any() and not drawn(image, PREDICTION).any()
    assert drawn(truth, TRUTH).any() and not drawn(truth, PREDICTION).any()
    assert drawn(prediction, TRUTH).any()
    rows, columns = np.nonzero(
        drawn(prediction, PREDICTION)
    )  # what is bright: a disc of radius 9 about (20, 20), at twice the size
    assert (rows.mean(), columns.mean()) == pytest.approx((40, 40), abs=3)
    assert legend(("lesion",)) == [("truth", TRUTH), ("prediction", PREDICTION)]


def test_several_classes_have_their_colours_in_truth_and_prediction(layout):
    with_second_class(layout.root)
    two = Layout.open(layout.root)
    for picture in panels(brightness(("lesion", "rest")), two, "benign (1)", (200, 200))[1:]:
        assert drawn(picture, COLOURS[1]).any()
    assert legend(("lesion", "rest")) == [("lesion", COLOURS[0]), ("rest", COLOURS[1])]


def test_the_page_names_every_case_beside_its_picture(layout, tmp_path):
    names = [f"<{number:02}>" for number in range(PER_SHEET + 1)]
    for name in names:
        write_image(layout.root / f"images/{name}.png", np.full((40, 50), 10, np.uint8))
        write_mask(layout.root / f"masks/0/{name}.png", np.eye(40, 50, dtype=bool))
    layout, segmenter = Layout.open(layout.root), brightness()
    evaluation = evaluate(segmenter, layout, names)
    page = write_worst(tmp_path / "page", segmenter, layout, evaluation, worst_of(evaluation, 99), "w & list")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "worst-1.png", "worst-2.png"]
    text = page.read_text("utf-8")
    assert "w &amp; list" in text and "<00>" not in text
    assert text.index("worst-1.png") < text.index("&lt;00&gt;") < text.index("worst-2.png") < text.index("&lt;10&gt;")
    assert f"{evaluation.reliability[0].expected_calibration_error:.4f}" in text
    assert text.count("<circle") == np.count_nonzero(evaluation.reliability[0].pixels)
    first, second = (read_image(page.parent / f"worst-{number}.png") for number in (1, 2))
    assert first.shape[1] > second.shape[1] and first.shape[0] > 4 * (second.shape[0] - 40)
    assert drawn(second, TRUTH).any()
    check_folder(page.parent)  # its own page may be written again


def test_another_page_is_left_alone(tmp_path):
    write_page(tmp_path / "page/index.html", "My home", "")
    with pytest.raises(UsageError, match="another page"):
        check_folder(tmp_path / "page")
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "page/index.html")
    check_folder(tmp_path / "new")
