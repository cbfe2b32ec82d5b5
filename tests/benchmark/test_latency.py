"""`latency`: one run over backends, its numbers checked against the files and the arithmetic that they are about."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.tiny_network import describe, write_network

from cmunext.benchmark import latency
from cmunext.benchmark.latency import Row, measure
from cmunext.benchmark.latency_plot import plot
from cmunext.benchmark.latency_worker import peak_memory
from cmunext.cli.main import main
from cmunext.errors import InputError, UsageError
from cmunext.inference.backends.signature import PRECISION
from cmunext.inference.native import library
from cmunext.metadata import KEY

COLUMNS = {"network", "backend", "precision", "threads", "median_ms", "p95_ms", "max_abs_diff"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx")


def test_an_int8_file_is_said_to_be_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_network(tmp_path / "int8.onnx", properties={KEY: describe().to_json(), PRECISION: "int8"})
    assert main(["latency", str(file), "--backends", "onnxruntime", "--count", "4"]) == 0
    assert "Compared with onnxruntime in int8, logits by" in capsys.readouterr().out


def test_the_rows_of_a_file(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    call = ["latency", str(network), "--backends", "onnxruntime,openvino", "--precisions", "float32", "--count", "6", "--json"]
    assert main(call) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert printed.err == ""
    assert [(row["backend"], row["precision"], row["threads"]) for row in rows] == [
        ("onnxruntime", "float32", 1),
        ("openvino", "float32", 1),
    ]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["network"] == str(network)
        assert 0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"] < row["start_up_ms"]
        assert row["images_per_second"] == pytest.approx(1000 / row["median_ms"])
        assert row["images"] == 8  # whole turns of four
        assert row["file_bytes"] == network.stat().st_size
        assert row["reference"] == "onnxruntime in float32"
        assert 20e6 < row["peak_memory_bytes"] < 2e9
    assert rows[0]["max_abs_diff"] == 0
    assert 0 <= rows[1]["max_abs_diff"] < 1e-4
    assert rows[1]["mask_iou"] == 1


def test_native_is_no_trouble_where_nobody_asked_for_it(network: Path, tmp_path: Path) -> None:
    if not library.available():
        pytest.skip("there is no C++ compiler")
    model = onnx.load(network)
    model.graph.node[0].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Identity", ["before"], ["logits"]))
    onnx.save(model, tmp_path / "other.onnx")
    rows, troubles = measure([str(tmp_path / "other.onnx")], count=1)
    assert troubles == []
    assert "onnxruntime" in {row.backend for row in rows}
    assert "native" not in {row.backend for row in rows}
    rows, troubles = measure([str(network), str(tmp_path / "other.onnx")], ["native"], ["float32"], count=1)
    assert [row.network for row in rows] == [str(network)]
    assert rows[0].max_abs_diff < 1e-4
    assert "the native backend runs CMUNeXt, and this network has" in troubles[0]


def test_weights_by_name_that_are_safetensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from cmunext import networks, weights
    from cmunext.benchmark.latency_files import prepare_all
    from cmunext.image.preprocess import Preprocessing
    from cmunext.metadata import Metadata

    torch.manual_seed(0)
    preprocessing = Preprocessing(height=32, width=32)
    network = networks.create("cmunext-s", in_channels=3, num_classes=1)
    path = tmp_path / "mine.safetensors"
    weights.save(path, network, Metadata("cmunext-s", {"in_channels": 3, "num_classes": 1}, preprocessing, ("lesion",)))
    monkeypatch.setenv("CMUNEXT_ZOO", str(tmp_path))
    (prepared,), troubles = prepare_all(["mine"], {"torch"}, tmp_path / "made", lambda text: None)
    assert troubles == []
    assert prepared.files == {"torch": path}
    assert prepared.metadata.preprocessing == preprocessing
    with pytest.raises(UsageError, match=r"no weights 'other'; .* weights are .*\bmine\b"):
        prepare_all(["other"], {"torch"}, tmp_path / "made", lambda text: None)


@pytest.mark.slow
def test_a_registered_network_against_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openvino")
    figure = tmp_path / "times.svg"
    assert main(["latency", "cmunext-s", "--count", "4", "--plot", str(figure)]) in (0, 1)  # 1: a CPU without bfloat16
    table = capsys.readouterr().out
    lines = [line.split() for line in table.splitlines() if line.strip().startswith("cmunext-s")]
    found = {(words[1], words[2]): float(words[-2]) for words in lines}
    assert found["torch", "float32"] == 0
    assert found["onnxruntime", "float32"] < 1e-2
    assert found["openvino", "float32"] < 1e-2
    assert "Compared with torch in float32" in table
    assert "openvino" in figure.read_text()


def test_a_network_with_random_weights_has_the_statistics_of_its_images() -> None:
    torch = pytest.importorskip("torch")
    from cmunext import networks
    from cmunext.benchmark.latency_files import settle
    from cmunext.image.preprocess import Preprocessing
    from cmunext.phantom import simulate

    preprocessing = Preprocessing(height=64, width=64)
    torch.manual_seed(0)
    network = networks.create("cmunext-s")
    settle(network, preprocessing)
    assert not network.training
    seen: dict[str, float] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: float(out.std())}))
            assert module.momentum == 0.1
    images = [preprocessing.to_input(simulate(seed, 64, 64)[0]) for seed in range(8)]
    with torch.no_grad():
        network(torch.from_numpy(np.concatenate(images)))
    assert len(seen) > 20
    assert all(0.5 < spread < 2 for spread in seen.values())  # one, up to the images that the statistics have not seen


@pytest.mark.parametrize("classes", [("lesion",), ("background", "lesion")])
def test_agreement_is_that_of_logits_and_of_masks_at_the_images_size(classes: tuple[str, ...]) -> None:
    from cmunext.image.preprocess import Preprocessing
    from cmunext.metadata import Metadata

    arguments = {"in_channels": 3, "num_classes": len(classes)}
    metadata = Metadata("cmunext-s", arguments, Preprocessing(height=4, width=4), classes)
    expected = np.full((2, len(classes), 4, 4), -1, np.float32)
    expected[0, -1, :2] = 1
    other = expected.copy()
    other[0, -1, 1] = -2
    pixels = [np.zeros((4, 4), np.uint8)] * 2
    difference, iou = latency._agreement(expected, other, metadata, pixels)
    assert difference == 3
    assert iou == pytest.approx((4 / 8 + 1) / 2)  # half of the first mask, and both empty in the second


def test_what_cannot_be_measured(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ({"backends": ["tflite"]}, "no backend 'tflite'"),
        ({"precisions": ["int4"]}, "no precision 'int4'"),
        ({"backends": ["torch"], "precisions": ["bfloat16"]}, "does not run in bfloat16"),
        ({"threads": [0]}, "threads is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            measure([str(network)], **arguments)
    with pytest.raises(UsageError, match=r"no weights 'cmunext-s-brest'; networks are cmunext-s, .* weights are"):
        measure(["cmunext-s-brest"])
    with pytest.raises(UsageError, match="no such weights file"):
        measure([str(tmp_path / "none.onnx")])
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(InputError, match="cannot be opened as an ONNX model"):
        measure([str(tmp_path / "bad.onnx")], ["onnxruntime"])
    assert main(["latency", str(network), "--threads", "x"]) == 2
    assert "--threads is 'x'" in capsys.readouterr().err
    assert main(["latency", str(network), "--plot", "times.txt"]) == 2
    assert "a plot is written as .svg" in capsys.readouterr().err


def test_the_plot_says_what_the_rows_say(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = Row("weights/mine.onnx", "openvino", "bfloat16", 2, 12.34, 11.0, 14.0, 81.0, 900.0, None, 10, "torch", 0.1, 0.99, 40)
    rows = [row, replace(row, network="unext", precision="float32", threads=1, backend="torch", median_ms=56.78)]
    plot(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for word in ("mine.onnx, openvino bfloat16, 2 threads", "unext, torch float32, 1 thread", "12.3", "56.8"):
        assert word in text
    plot(rows, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text
    assert asdict(row)["median_ms"] == 12.34


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does")
def test_peak_memory_is_of_this_process_and_of_its_peak() -> None:
    program = (
        "from cmunext.benchmark.latency_worker import peak_memory; before = peak_memory();"
        "block = bytearray(b'x') * 200_000_000; del block; print(peak_memory() - before)"
    )
    ballast = bytearray(b"x") * 300_000_000  # of the parent, which must not count
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert grown == pytest.approx(200e6, rel=0.1)
    assert peak_memory() > len(ballast)
