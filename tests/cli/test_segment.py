"""`cmunext segment` as its users meet it: files, exit codes, sentences, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.encoded import encoded, png_header
from tests.tiny_network import dark_discs, describe, write_network

from cmunext.cli.main import main
from cmunext.image.files import read_image, read_mask, write_image


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which `images` holds two good images."""
    write_image(tmp_path / "images" / "case (2).png", dark_discs((120, 160), ((50, 60, 20),)))
    write_image(tmp_path / "images" / "case (10).png", dark_discs((90, 100), ((20, 20, 9), (70, 60, 15))))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gives_masks_overlays_and_records(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "images", "--weights", network]) == 0
    out = folder / "segmentation"
    expected = ["case (10)_mask.png", "case (10)_overlay.png", "case (2)_mask.png", "case (2)_overlay.png", "segmentation.json"]
    assert names(out) == expected
    records = json.loads((out / "segmentation.json").read_text())
    assert [record["source"] for record in records] == [str((folder / "images" / f"case ({n}).png").resolve()) for n in (2, 10)]
    assert [(record["mask"], record["overlay"]) for record in records] == [
        tuple(str(out.resolve() / f"case ({n})_{what}.png") for what in ("mask", "overlay")) for n in (2, 10)
    ]
    first, second = records
    assert (first["width"], first["height"], first["weights"]) == (160, 120, network)
    mask = read_mask(first["mask"])
    assert mask.shape == (120, 160)
    assert first["lesions"][0]["area"] == mask.sum()
    assert first["lesions"][0]["area_mm2"] is None
    assert len(second["lesions"]) == 2
    overlay = read_image(first["overlay"])
    assert overlay.shape == (120, 160, 3)
    assert np.ptp(overlay[60, 45:55].astype(int), axis=1).min() > 10  # tinted inside
    assert np.ptp(overlay[5, 5:155].astype(int), axis=1).max() == 0  # and grey outside
    printed = capsys.readouterr()
    assert "case (2).png" in printed.out
    assert str(mask.sum()) in printed.out
    assert "2 of 2 done" in printed.out
    assert printed.err == ""


def test_json_is_one_document_and_nothing_else(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "images", "--weights", network, "--json", "--out", "there"]) == 0
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    assert records[0]["source"] == "images/case (2).png"  # as it was typed, and outputs that can be opened from here
    assert records[0]["mask"] == "there/case (2)_mask.png"
    assert records[0]["overlay"] == "there/case (2)_overlay.png"
    kept = json.loads((folder / "there" / "segmentation.json").read_text())
    assert [record["lesions"] for record in records] == [record["lesions"] for record in kept]
    assert {"source", "mask", "overlay", "lesions", "width", "height"} <= records[0].keys()
    assert printed.err == ""


def test_what_a_folder_holds_beside_images_is_left_out_and_said(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [f"case (2)_mask{ending}.png" for ending in ("", "_1")]  # as BUSI has them
    for name in masks:
        write_image(folder / "images" / name, dark_discs())
    assert main(["segment", "images", "--weights", network]) == 0
    said = "left out as masks of the images beside them: 'case (2)_mask.png' and 1 more; give a mask by its name to segment it\n"
    assert capsys.readouterr().err == said
    assert len(json.loads((folder / "segmentation" / "segmentation.json").read_text())) == 2
    for name in ("about.txt", "clip.mp4", "zebra.avi"):
        (folder / "images" / name).write_text("x")
    (folder / "images" / masks[1]).unlink()
    assert main(["segment", "images", f"images/{masks[0]}", "--weights", network, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "left out as no images: 'clip.mp4' and 2 more; give a video by its name\n"
    assert len(json.loads(printed.out)) == 3


def test_names_that_are_no_text_or_too_long_for_an_ending(folder: Path, network: str) -> None:
    odd = [os.fsdecode(b"bad\xff.png"), "ä" * 123 + ".png"]
    for name in odd:
        try:
            write_image(folder / "images" / "new.png", dark_discs())
            (folder / "images" / "new.png").rename(folder / "images" / name)
        except OSError:
            pytest.skip("this disk takes no such name")
    call = [sys.executable, "-m", "cmunext", "segment", "images", "--weights", network, "--json"]
    done = subprocess.run(call, capture_output=True, check=True)
    assert {Path(record["source"]).name for record in json.loads(done.stdout)} > set(odd)
    kept = json.loads((folder / "segmentation" / "segmentation.json").read_text())
    assert len(kept) == 4
    assert all(Path(record["mask"]).is_file() and Path(record["source"]).is_file() for record in kept)
    subprocess.run(call[:-1], capture_output=True, check=True)  # known again, and in the table
    assert len(names(folder / "segmentation")) == 9


def test_images_far_from_the_networks_shape_are_warned_of(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shape in (("wide", (50, 160)), ("tall", (160, 50)), ("within", (50, 150))):
        write_image(folder / f"{name}.png", dark_discs(shape, ()))
    assert main(["segment", "within.png", "--weights", network]) == 0
    assert capsys.readouterr().err == ""
    assert main(["segment", "wide.png", "tall.png", "within.png", "--weights", network]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: squeezed to the network's 64 x 64: 'wide.png' (160 x 50 pixels) and 1 more; ")


@pytest.mark.parametrize(("given", "factors"), [("0.1", (0.1, 0.1)), ("0.2,0.1", (0.2, 0.1))])
def test_spacing(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str], given: str, factors: tuple[float, float]
) -> None:
    assert main(["segment", "images/case (2).png", "--weights", network, "--json", "--spacing", given]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["spacing_mm"] == list(factors)
    assert record["lesions"][0]["area_mm2"] == pytest.approx(record["lesions"][0]["area"] * factors[0] * factors[1])
    assert main(["segment", "images/case (2).png", "--weights", network, "--spacing", given]) == 0
    assert f"{record['lesions'][0]['area_mm2']:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["0", "-1", "x", "1,2,3", "nan", ""])
def test_a_spacing_that_is_none(folder: Path, network: str, capsys: pytest.CaptureFixture[str], given: str) -> None:
    assert main(["segment", "images", "--weights", network, f"--spacing={given}"]) == 2
    assert "error: --spacing is" in capsys.readouterr().err
    assert not (folder / "segmentation").exists()


BAD = {
    "empty.png": b"",
    "text.png": b"hello\n" * 9,
    "cut.png": encoded(".png", np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))[:4000],
    "cut.jpg": encoded(".jpg", np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))[:3000],
    "gigantic.png": png_header(20000, 20000),
    "one.png": encoded(".png", np.zeros((1, 1), np.uint8)),
    "nan.tif": encoded(".tif", np.full((20, 20), np.nan, np.float32)),
}


def test_over_a_folder_the_good_files_are_done_and_the_exit_code_tells(
    folder: Path, network: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, content in BAD.items():
        (folder / "images" / name).write_bytes(content)
    assert main(["segment", "images", "--weights", network, "--json"]) == 1
    printed = capfd.readouterr()
    assert len(json.loads(printed.out)) == 2
    lines = printed.err.splitlines()
    assert len(lines) == len(BAD)
    for name in BAD:
        assert sum(line.startswith(f"error: images/{name}: ") for line in lines) == 1
    assert len(names(folder / "segmentation")) == 5


@pytest.mark.parametrize("name", BAD)
def test_a_single_bad_file(folder: Path, network: str, capfd: pytest.CaptureFixture[str], name: str) -> None:
    (folder / name).write_bytes(BAD[name])
    assert main(["segment", name, "--weights", network]) == 1
    printed = capfd.readouterr()
    assert printed.err.startswith(f"error: {name}: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (folder / "segmentation").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "none.png: there is no such file"),
        (["images", "--frames", "3"], "neither a video nor a --camera"),
        (["images", "none*.png"], "no image matches"),
        (["empty"], "no image in this folder"),
        (["images", "--weights", "none"], "there are no weights 'none'"),
        (["images", "--weights", "none.onnx"], "no such weights file"),
        (["images", "--backend", "tflite"], "there is no backend 'tflite'"),
        (["images", "--device", "tpu"], "there is no device 'tpu'"),
        (["images", "--out", "images/case (2).png"], "this is a file"),
        (["images", "--out", "images/../images"], "the folder to be segmented"),
    ],
)
def test_wrong_calls_write_nothing(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty").mkdir()
    weights = [] if "--weights" in arguments else ["--weights", network]
    assert main(["segment", *arguments, *weights]) == 2
    assert message in capsys.readouterr().err
    assert names(folder) == ["empty", "images"]
    assert len(names(folder / "images")) == 2


def test_running_again_replaces_its_own_results_and_nothing_else(
    folder: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["segment", "images", "--weights", network]
    assert main(call) == 0
    before = {path.name: path.read_bytes() for path in (folder / "segmentation").iterdir()}
    assert main(call) == 0
    assert {path.name: path.read_bytes() for path in (folder / "segmentation").iterdir()} == before

    write_image(folder / "images" / "new.png", dark_discs())
    (folder / "segmentation" / "new_mask.png").write_bytes(b"drawn by hand")
    assert main(call) == 2
    assert "new_mask.png: this file exists and is not recorded" in capsys.readouterr().err
    assert (folder / "segmentation" / "new_mask.png").read_bytes() == b"drawn by hand"
    assert main([*call, "--overwrite"]) == 0
    assert read_mask(folder / "segmentation" / "new_mask.png").any()


def test_results_gather_over_runs(folder: Path, network: str) -> None:
    assert main(["segment", "images/case (2).png", "--weights", network]) == 0
    assert main(["segment", "images/case (10).png", "--weights", network]) == 0
    assert main(["segment", "images/case (2).png", "--weights", network]) == 0
    records = json.loads((folder / "segmentation" / "segmentation.json").read_text())
    assert sorted(Path(record["source"]).name for record in records) == ["case (10).png", "case (2).png"]


def test_a_source_is_known_from_whatever_folder_the_command_runs_in(
    folder: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hospital, discs in (("a", ((30, 30, 10),)), ("b", ((30, 30, 10), (90, 90, 12)))):
        write_image(folder / hospital / "scan.png", dark_discs(discs=discs))
    call = ["segment", "--weights", network, "--out", str(folder / "out")]
    for hospital in "abab":
        monkeypatch.chdir(folder / hospital)
        assert main([*call, "scan.png"]) == 0
    monkeypatch.chdir(folder)
    assert main([*call, "b/scan.png"]) == 0
    (folder / "out").rename(folder / "moved")
    records = json.loads((folder / "moved" / "segmentation.json").read_text())
    assert [record["source"] for record in records] == [str((folder / each / "scan.png").resolve()) for each in "ab"]
    masks = [Path(record["mask"]).name for record in records]
    assert masks == ["scan_mask.png", "scan-2_mask.png"]
    assert [len(record["lesions"]) for record in records] == [1, 2]
    assert [read_mask(folder / "moved" / name).sum() for name in masks] == [
        sum(lesion["area"] for lesion in record["lesions"]) for record in records
    ]
    assert main([*call[:-1], str(folder / "moved"), "b/scan.png"]) == 0
    assert len(json.loads((folder / "moved" / "segmentation.json").read_text())) == 2, "of a folder that was moved"


def test_records_of_earlier_versions_are_read(folder: Path, network: str) -> None:
    """They had every path as it was typed."""
    assert main(["segment", "images", "--weights", network]) == 0
    path = folder / "segmentation" / "segmentation.json"
    expected = json.loads(path.read_text())
    earlier = [
        {
            **record,
            "source": f"images/{Path(record['source']).name}",
            **{k: f"segmentation/{Path(record[k]).name}" for k in ("mask", "overlay")},
        }
        for record in expected
    ]
    path.write_text(json.dumps(earlier))
    assert main(["segment", "images", "--weights", network]) == 0
    assert json.loads(path.read_text()) == expected


def test_a_foreign_record_file_is_left_alone(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "segmentation" / "segmentation.json"
    path.parent.mkdir()
    for content in ('{"mine": 1}', "[1]", "not json", '[{"source": "x"}]'):
        path.write_text(content)
        assert main(["segment", "images", "--weights", network]) == 2
        assert "is not of this program" in capsys.readouterr().err
        assert path.read_text() == content
        assert names(path.parent) == ["segmentation.json"]


def test_files_of_one_stem_do_not_collide_in_a_run_or_over_runs(folder: Path, network: str) -> None:
    for name, discs in (("a/one.png", ((30, 30, 10),)), ("b/ONE.png", ((30, 30, 10), (90, 90, 12))), ("b/one.bmp", ())):
        write_image(folder / name, dark_discs(discs=discs))
    sources = ["a/one.png", "b/ONE.png", "b/one.bmp"]
    assert main(["segment", *sources, "--weights", network]) == 0
    records = json.loads((folder / "segmentation" / "segmentation.json").read_text())
    assert [Path(record["mask"]).name for record in records] == ["one_mask.png", "ONE-2_mask.png", "one-3_mask.png"]
    assert [len(record["lesions"]) for record in records] == [1, 2, 0]
    assert main(["segment", "b/one.bmp", "--weights", network]) == 0  # keeps the name that it had
    again = json.loads((folder / "segmentation" / "segmentation.json").read_text())
    assert sorted(again, key=lambda r: r["mask"]) == sorted(records, key=lambda r: r["mask"])
    assert len(names(folder / "segmentation")) == 7


def test_an_output_never_replaces_an_input(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(folder / "images" / "case (2)_mask.png", dark_discs())
    before = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    assert main(["segment", "images/*.png", "--weights", network, "--out", "images", "--overwrite"]) == 2
    assert "this output would overwrite an input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "images").iterdir()} == before


def test_several_classes_give_a_mask_each(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = write_network(tmp_path / "two.onnx", describe(classes=("lesion", "simple cyst")))
    assert main(["segment", "images/case (2).png", "--weights", str(two), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["mask"] == ["segmentation/case (2)_mask_lesion.png", "segmentation/case (2)_mask_simple-cyst.png"]
    assert all(read_mask(path).shape == (120, 160) for path in record["mask"])
    assert main(["segment", "images/case (2).png", "--weights", str(two)]) == 0
    assert "simple cyst" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(folder: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("x")
    assert main(["segment", "images", "--weights", network, "--out", "file/inside"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: file/inside: ")
    assert error.count("\n") == 1
    assert names(folder) == ["file", "images"]


FULL_DISK = """
import resource, sys
from cmunext.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which Windows lacks")
def test_a_disk_that_is_full_leaves_nothing_half_written(folder: Path, network: str) -> None:
    write_image(folder / "images" / "big.png", np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    call = ["segment", "images/case (2).png", "images/big.png", "--weights", network]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, "20000", *call], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    out = folder / "segmentation"
    assert not [name for name in names(out) if ".part" in name]
    assert cv2.imread(str(out / "case (2)_overlay.png")) is not None
    assert not (out / "big_overlay.png").exists()
    assert [Path(record["mask"]).name for record in json.loads((out / "segmentation.json").read_text())] == ["case (2)_mask.png"]


@pytest.mark.parametrize("terminated", [False, True])
def test_an_interrupted_run_keeps_what_is_done(
    folder: Path, network: str, terminated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmunext.inference import results

    def interrupted(path: Path, picture: np.ndarray) -> None:
        if path.name == "case (10)_overlay.png":
            if terminated:
                signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt
        write_image(path, picture)

    monkeypatch.setattr(results, "write_image", interrupted)
    assert main(["segment", "images", "--weights", network]) == 130
    out = folder / "segmentation"
    (record,) = json.loads((out / "segmentation.json").read_text())
    assert Path(record["mask"]).name == "case (2)_mask.png"
    assert not [name for name in names(out) if ".part" in name]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert (out / "case (10)_mask.png").exists()
    assert main(["segment", "images", "--weights", network]) == 0  # the same command goes on
    assert len(json.loads((out / "segmentation.json").read_text())) == 2
    assert len(list(out.iterdir())) == 5


def test_the_whole_process_leaves_out_torch(folder: Path, network: str) -> None:
    program = (
        "import sys; from cmunext.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = [name for name in ('torch', 'scipy', 'pandas', 'sklearn', 'matplotlib', 'onnx') if name in sys.modules];"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    call = ["segment", "images/case (2).png", "--weights", network]
    done = subprocess.run([sys.executable, "-c", program, *call], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "1 of 1 done" in done.stdout


def test_classes_whose_names_differ_in_signs_only_have_a_mask_each(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("weights") / "two.onnx"
    write_network(path, describe(classes=("HER2+", "HER2-")))
    assert main(["segment", "images/case (2).png", "--weights", str(path)]) == 0
    assert [name for name in names(folder / "segmentation") if "mask" in name] == [
        "case (2)_mask_HER2--0.png",
        "case (2)_mask_HER2--1.png",
    ]
