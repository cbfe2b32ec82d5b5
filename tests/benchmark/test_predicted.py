"""Masks of any program in a folder are measured as those of weights are."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.bright import NAMES, brightness, with_second_class, write_cases

from cmunext.benchmark.evaluate import evaluate
from cmunext.benchmark.predicted import MaskFolder
from cmunext.cli.main import main
from cmunext.data.layout import Layout
from cmunext.errors import InputError, UsageError
from cmunext.image.files import find_images, read_image, write_image, write_mask
from cmunext.inference.results import segment_files


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_cases(tmp_path / "data")


@pytest.fixture
def masks(dataset: Path, tmp_path: Path) -> Path:
    """What `segment` leaves: NAME_mask.png, NAME_overlay.png, segmentation.json."""
    assert all(result.record for result in segment_files(brightness(), find_images([dataset / "images"]), tmp_path / "masks"))
    return tmp_path / "masks"


def test_masks_that_segment_wrote_score_as_their_weights(dataset, masks):
    layout = Layout.open(dataset)
    of_weights = evaluate(brightness(), layout, NAMES, surface=True)
    of_masks = evaluate(MaskFolder.open(masks), layout, NAMES, surface=True)
    columns, rows = of_weights.table()
    kept = [place for place, column in enumerate(columns) if column != "ece"]
    assert of_masks.table() == ([columns[k] for k in kept], [[row[k] for k in kept] for row in rows])
    expected, summary = of_weights.summary(), of_masks.summary()
    assert set(expected) - set(summary) == {"ece_pooled"}
    assert (summary["per_image"], summary["reliability"]) == (
        {name: value for name, value in expected["per_image"].items() if name != "ece"},
        {},
    )


def test_masks_of_several_classes_lie_in_numbered_folders(dataset, tmp_path):
    layout = Layout.open(with_second_class(dataset))
    segmenter = brightness(("0", "1"))
    for name in NAMES:
        for number, mask in enumerate(segmenter(layout.image(name)).mask):
            write_mask(tmp_path / "two" / str(number) / f"{name}.png", mask)
    expected = evaluate(segmenter, layout, NAMES).per_image()
    found = evaluate(MaskFolder.open(tmp_path / "two", ("0", "1")), layout, NAMES).per_image()
    assert all((values == expected[name]).all() for name, values in found.items())
    assert all(one.record for one in segment_files(segmenter, find_images([dataset / "images"]), tmp_path / "written"))
    written = evaluate(MaskFolder.open(tmp_path / "written", ("0", "1")), layout, NAMES).per_image()
    assert all((values == expected[name]).all() for name, values in written.items())
    with pytest.raises(UsageError, match="holds no mask"):
        MaskFolder.open(tmp_path / "written", ("0", "cyst"))
    with pytest.raises(UsageError, match="more classes than the dataset, which has 1"):
        MaskFolder.open(tmp_path / "two", ("lesion",))
    two = MaskFolder.open(tmp_path / "two", ("0", "1"))
    with pytest.raises(InputError, match=r"the masks have 2 classes .* has masks of 1"):
        evaluate(two, Layout.open(write_cases(tmp_path / "one")), NAMES)


def test_any_level_beside_black_is_foreground(dataset, tmp_path):
    layout = Layout.open(dataset)
    for name in NAMES:
        for folder, dtype in (("8", np.uint8), ("16", np.uint16)):
            (tmp_path / folder).mkdir(exist_ok=True)
            labels = read_image(layout.masks(name)[0]) // 255  # 0 and 1
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), labels.astype(dtype))
    for folder in ("8", "16"):
        assert (evaluate(MaskFolder.open(tmp_path / folder), layout, NAMES).per_image()["iou"] == 1).all()
    cv2.imwrite(str(tmp_path / "8" / f"{NAMES[0]}.png"), 1 + (read_image(layout.masks(NAMES[0])[0]) > 0).astype(np.uint8))
    ((_, told),) = evaluate(MaskFolder.open(tmp_path / "8"), layout, NAMES).failures
    assert "2 levels from 1 to 2" in told


def test_masks_that_cannot_be_used_are_named(dataset, masks, tmp_path):
    first, second, third, fourth = NAMES
    grey = read_image(dataset / "images" / f"{first}.png")
    grey[0, 0] = 90
    write_image(masks / f"{first}_mask.png", grey)
    write_image(masks / f"{second}_mask.png", np.zeros((9, 12), np.uint8))
    (masks / f"{third}_mask.png").unlink()
    cv2.imwrite(str(masks / f"{fourth}_mask.bmp"), np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match=r"none of the 4 cases .* has 3 levels from 20 to 230"):
        evaluate(MaskFolder.open(masks), Layout.open(dataset), NAMES)
    (masks / f"{fourth}_mask.bmp").rename(masks / f"{fourth}.bmp")  # the image's own name goes first
    failures = evaluate(MaskFolder.open(masks), Layout.open(dataset), NAMES).failures
    assert [case for case, _ in failures] == [first, second, third]
    assert "9 x 12 pixels and its image 60 x 90" in failures[1][1]
    assert f"add {third}.png, all black where nothing was found" in failures[2][1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no mask"):
        MaskFolder.open(tmp_path / "empty")
    with pytest.raises(UsageError, match="masks/0 holds no mask"):
        MaskFolder.open(masks, ("0", "1"))
    with pytest.raises(UsageError, match="native size"):
        evaluate(MaskFolder.open(masks), Layout.open(dataset), NAMES, at="network")


def test_command(dataset, masks, tmp_path, capsys):
    call = ["evaluate", str(masks), str(dataset), "--list", "all.txt"]
    assert main([*call, "--json", "--out", str(tmp_path / "scores.csv"), "--pictures", str(tmp_path / "page")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["masks"], document["n"]) == ({"source": str(masks)}, 4)
    assert "weights" not in document
    assert (tmp_path / "scores.csv").read_text().startswith("case,class,")
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"the masks in {masks}" in page
    assert "Calibration" not in page
    assert main(call) == 0
    assert "the masks in" in capsys.readouterr().out
    assert main([*call, "--at", "network"]) == 2
    assert capsys.readouterr().err.startswith("error: the size of comparison is network")


def test_options_of_a_network_are_refused_with_masks(dataset, masks, capsys):
    for option in (["--backend", "native"], ["--device", "cuda"], ["--precision", "bfloat16"], ["--threads", "2"]):
        assert main(["evaluate", str(masks), str(dataset), *option]) == 2, option
        assert "is a folder of masks, and no network runs; leave out --backend" in capsys.readouterr().err


def test_weights_and_dataset_agree_on_the_classes(dataset):
    root = with_second_class(dataset)
    unnamed, named = brightness(("class 0", "class 1")), brightness(("background", "cyst"))
    assert evaluate(unnamed, Layout.open(root), NAMES).classes == ("class 0", "class 1")
    assert evaluate(named, Layout.open(root), NAMES).classes == ("cyst",)
    (root / "classes.txt").write_text("background\ncyst\n")
    of_named, of_unnamed = (evaluate(weights, Layout.open(root), NAMES) for weights in (named, unnamed))
    assert of_named.classes == of_unnamed.classes == ("cyst",), "weights without names take those of the dataset"
    assert (of_named.per_image()["iou"] == of_unnamed.per_image()["iou"]).all()
    (root / "classes.txt").write_text("cyst\nbackground\n")
    with pytest.raises(InputError, match=r"have 2 classes \(background, cyst\) and .* has masks of 2 \(cyst, background\)"):
        evaluate(named, Layout.open(root), NAMES)
