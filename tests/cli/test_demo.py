"""`cmunext demo`: phantoms written, segmented, scored, drawn; and the bundled weights' score on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_network import describe, write_network

from cmunext import demo
from cmunext.cli.main import main
from cmunext.image.files import read_grey, read_image, read_mask
from cmunext.inference.named_weights import weight_names
from cmunext.phantom import simulate


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms of a quarter of the size, for speed."""
    monkeypatch.setattr(demo, "simulate", lambda seed: simulate(seed, 118, 142))


@pytest.mark.usefixtures("small")
def test_everything_is_written_and_the_scores_are_those_of_the_files(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shown"
    assert main(["demo", "--out", str(out), "--count", "3", "--seed", "5", "--weights", network, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "demo.json").read_text())
    assert [entry["seed"] for entry in summary["phantoms"]] == [5, 6, 7]
    for entry in summary["phantoms"]:
        image, truth = demo.simulate(entry["seed"])
        np.testing.assert_array_equal(read_grey(entry["image"]), image)
        np.testing.assert_array_equal(read_mask(entry["truth"]), truth)
        mask = read_mask(entry["mask"])
        assert entry["iou"] == pytest.approx((mask & truth).sum() / (mask | truth).sum())
        assert sum(lesion["area"] for lesion in entry["lesions"]) == mask.sum()
        assert read_image(entry["compared"]).shape == (*truth.shape, 3)
    assert summary["mean_iou"] == pytest.approx(np.mean([entry["iou"] for entry in summary["phantoms"]]))
    assert read_image(summary["contact_sheet"]).shape[2] == 3
    assert sorted(path.name for path in out.iterdir()) == [
        "compared", "contact-sheet.png", "demo.json", "images", "masks", "segmentation",
    ]  # fmt: skip


@pytest.mark.usefixtures("small")
def test_the_table_names_the_mean_and_the_pictures(tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shown"
    call = ["demo", "--out", str(out), "--count", "2", "--weights", network]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert f"{json.loads((out / 'demo.json').read_text())['mean_iou']:.3f}" in printed
    assert "contact-sheet.png" in printed
    assert main(call) == 0  # into its own folder again


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--weights", network]) == 2
    assert "something else than a demonstration" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "notes.txt"), "--weights", network]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_weights_of_several_classes_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = write_network(tmp_path / "two.onnx", describe(classes=("a", "b")))
    assert main(["demo", "--out", str(tmp_path / "out"), "--weights", str(two)]) == 2
    assert "these weights know 2" in capsys.readouterr().err


def test_the_bundled_weights_find_the_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "cmunext-s-busi" not in weight_names():
        pytest.skip("the weights cmunext-s-busi are not bundled in this checkout")
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["phantoms"]) == 8
    assert summary["mean_iou"] > 0.7
