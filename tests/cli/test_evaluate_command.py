"""`cmunext evaluate` as one calls it, on an ONNX file that outlines what is bright."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.datasets import write_dataset

from cmunext.cli.main import main
from cmunext.image.files import write_image, write_mask
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends.signature import PRECISION
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import KEY, Metadata
from cmunext.metrics import SCORES

onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra [train] brings it)")

NAMES = ("benign (1)", "benign (2)", "malignant (1)")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    size = (1, 1, 32, 40)
    metadata = Metadata(
        "cmunext-s",
        {"in_channels": 1, "num_classes": 1},
        Preprocessing(*size[2:], channels="grey", mean=(0.5,), std=(0.5,)),
        ("lesion",),
    )
    image, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *size[1:]]) for name in ("image", "logits")
    )
    eight = onnx.numpy_helper.from_array(np.float32(8), "eight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["image", "eight"], ["logits"])], "bright", [image], [logits], [eight]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    path = tmp_path / "bright.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for n, name in enumerate(NAMES):
        image = np.full((64, 80), 20, np.uint8)
        image[10:40, 10 + 5 * n : 40] = 230
        truth = np.zeros((64, 80), bool)
        truth[10:40, 10:40] = True
        write_image(root / "images" / f"{name}.png", image)
        write_mask(root / "masks/0" / f"{name}.png", truth)
    (root / "val.txt").write_bytes(("\r\n".join(NAMES) + "\r\n\r\n").encode())
    return root


def test_json_and_csv(weights, dataset, tmp_path, capsys):
    out = tmp_path / "new" / "scores.csv"
    code = main(["evaluate", str(weights), str(dataset), "--list", "val.txt", "--out", str(out), "--surface", "--json"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    document = json.loads(printed.out)
    assert document["n"] == 3
    assert set(SCORES) <= set(document["per_image"])
    assert set(SCORES) == set(document["pooled"])
    assert {"hd95", "surface_dice", "ece"} <= set(document["per_image"])
    assert (document["weights"]["backend"], document["weights"]["network"]) == ("onnxruntime", "cmunext-s")
    assert len(document["weights"]["sha256"]) == len(document["list"]["sha256"]) == 64
    assert (document["at"], document["list"]["cases"], document["scores"]) == ("native", 3, str(out))
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == list(NAMES)
    assert document["per_image"]["iou"] == pytest.approx(np.mean([float(row["iou"]) for row in rows]), rel=1e-14)
    # the second rectangle lacks 5 of 30 columns, the third 10
    assert [float(row["iou"]) for row in rows] == pytest.approx([1, 25 / 30, 20 / 30], abs=0.06)


def test_weights_that_state_int8_are_scored_in_it(weights, dataset, capsys):
    model = onnx.load(weights)
    model.metadata_props.add(key=PRECISION, value="int8")
    onnx.save(model, weights)
    assert main(["evaluate", str(weights), str(dataset), "--backend", "onnxruntime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["precision"] == "int8"
    assert main(["evaluate", str(weights), str(dataset), "--backend", "onnxruntime", "--precision", "float32"]) == 2
    assert "it computes in int8" in " ".join(capsys.readouterr().err.split())


def test_scores_do_not_rest_on_bfloat16_unless_asked_for(weights, dataset, capsys, monkeypatch):
    """`auto` may remember that it is faster."""
    asked = []

    def load(self, backend="auto", device="cpu", threads=None, precision=None):
        asked.append(precision)
        found = original(self, "onnxruntime", device, threads)
        return Segmenter(replace(found.backend, precision=precision or "bfloat16"))

    original = Segmenter.load
    monkeypatch.setattr(Segmenter, "load", load)
    assert main(["evaluate", str(weights), str(dataset), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["precision"] == "float32"
    assert asked == [None, "float32"]


def test_table_on_the_terminal(weights, dataset, capsys):
    assert main(["evaluate", str(weights), str(dataset), "--list", str(dataset / "val.txt"), "--at", "network"]) == 0
    printed = capsys.readouterr()
    for words in ("mean over images", "95 % interval", "pooled", "sensitivity", "network size", "3 images", "under IoU 0.1"):
        assert words in printed.out
    assert printed.err == ""


def test_without_a_list_every_case_is_measured(weights, dataset, capsys):
    assert main(["evaluate", str(weights), str(dataset), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n"], document["list"]) == (3, {"file": None, "sha256": None, "cases": 3})


def test_strata_worst_cases_and_pictures(weights, dataset, tmp_path, capsys):
    (dataset / "cases.csv").write_text("case,device\nbenign (1),GE\nmalignant (1),GE\n")
    (tmp_path / "clean.txt").write_text("benign (1)\n")
    page = tmp_path / "page" / "index.html"
    call = [
        "evaluate",
        str(weights),
        str(dataset),
        "--list",
        "val.txt",
        "--strata",
        "device",
        "--clean",
        str(tmp_path / "clean.txt"),
    ]
    assert main([*call, "--worst", "2", "--pictures", str(page.parent), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"written: {page}\n"
    document = json.loads(printed.out)
    strata = {name: [(one["stratum"], one["n"]) for one in records] for name, records in document["strata"].items()}
    assert strata == {
        "size": [("10 % and more", 3)],
        "class": [("benign", 2), ("malignant", 1)],
        "device": [("GE", 2), ("unknown", 1)],
        "clean": [("in the clean list", 1), ("not in the clean list", 2)],
    }
    assert document["strata"]["class"][1]["iou"] == pytest.approx(20 / 30, abs=0.06)
    assert [one["case"] for one in document["worst"]] == ["malignant (1)", "benign (2)"]
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "worst-1.png"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    for words in ("class: malignant", "device: unknown", "clean: in the clean list", "lowest IoU: malignant (1) 0.6"):
        assert words in printed


def test_a_broken_case_gives_exit_code_1_and_the_others_are_done(weights, dataset, tmp_path, capsys):
    (dataset / "masks/0/benign (2).png").write_bytes(b"")
    out = tmp_path / "scores.csv"
    code = main(["evaluate", str(weights), str(dataset), "--list", "val.txt", "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert code == 1
    document = json.loads(printed.out)
    assert document["n"] == 2
    assert [failure["case"] for failure in document["failures"]] == ["benign (2)"]
    assert "benign (2)" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["case", "benign (1)", "malignant (1)"]


def test_intervals_draw_patients_where_they_are_known(weights, dataset, capsys):
    (dataset / "cases.csv").write_text("case,patient\n" + "".join(f"{name},p{n // 2}\n" for n, name in enumerate(NAMES)))
    assert main(["evaluate", str(weights), str(dataset), "--list", "val.txt", "--json"]) == 0
    intervals = json.loads(capsys.readouterr().out)["intervals"]
    assert (intervals["group"], intervals["drawn"]) == ("patient", 2)
    assert main(["evaluate", str(weights), str(dataset), "--list", "val.txt", "--group", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"]["drawn"] == 3


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--list", "nowhere.txt"], 2, "nowhere.txt"),
        (["--at", "half"], 2, "'half'"),
        (["--backend", "abacus"], 2, "'abacus'"),
        (["--group", "hospital"], 2, "'hospital'"),
        (["--out", "DATASET"], 2, "folder"),
        (["--out", "DATASET/scores.xlsx"], 2, "name it scores.csv"),
        (["--strata", "device"], 2, "'device'"),
        (["--clean", "nowhere.txt"], 2, "nowhere.txt"),
        (["--pictures", "DATASET/val.txt"], 2, "is a file"),
        (["--out", "DATASET/val.txt"], 2, "the list itself"),
        (["--out", "WEIGHTS"], 2, "the weights itself"),
        (["--out", "DATASET/images/benign (2).png"], 2, "is there and is no score table"),
        (["--out", "WEIGHTS/new/scores.csv"], 1, "bright.onnx is not a folder"),
    ],
)
def test_wrong_calls_are_one_sentence(weights, dataset, capsys, change, code, words):
    change = [part.replace("DATASET", str(dataset)).replace("WEIGHTS", str(weights)) for part in change]
    before = {path: path.read_bytes() for path in (weights, dataset / "val.txt", dataset / "images/benign (2).png")}
    assert main(["evaluate", str(weights), str(dataset), "--list", "val.txt", "--json", *change]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
    assert words in printed.err
    assert {path: path.read_bytes() for path in before} == before


def test_unknown_names_in_the_list(weights, dataset, capsys):
    (dataset / "val.txt").write_text("benign (1)\nbenign (99)\n")
    assert main(["evaluate", str(weights), str(dataset), "--list", "val.txt"]) == 2
    assert "benign (99)" in capsys.readouterr().err


def test_of_several_classes_masks_are_counted_and_images_are(tmp_path, capsys):
    """Twelve images with masks of two classes, measured against themselves."""
    write_dataset(tmp_path / "data", classes=2)
    assert main(["evaluate", str(tmp_path / "data/masks"), str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "mean over masks" in printed
    assert " 24\n" in printed
    assert "12 images, 0.0 % under IoU 0.1; nothing to find in 0 masks" in printed
