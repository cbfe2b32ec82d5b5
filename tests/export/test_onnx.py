"""Exported files compute what PyTorch computes, describe themselves, and are not written when they disagree."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cmunext.errors import InputError, UsageError
from cmunext.export import onnx as exporter
from cmunext.export import parity
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import Metadata
from cmunext.phantom import simulate
from cmunext.weights import Weights


@pytest.fixture(scope="module")
def file(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once, as users write it."""
    path = tmp_path_factory.mktemp("exported") / "x.onnx"
    report = exporter.export(weights, path)
    assert report.max_abs_diff <= parity.LOGITS
    return path


def test_same_logits_at_any_batch_and_size(weights: Weights, file: Path) -> None:
    session = onnxruntime.InferenceSession(file)
    for shape in ((1, 3, 64, 64), (3, 3, 96, 160)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = weights.network(images).numpy()
        (logits,) = session.run(None, {"image": images.numpy()})
        assert expected.std() > 1e-3  # outputs that vary, so that the comparison can fail
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_file_describes_itself_and_how_it_was_made(weights: Weights, file: Path) -> None:
    metadata = Segmenter.load(file, backend="onnxruntime").metadata
    assert replace(metadata, export={}) == weights.metadata
    assert metadata.export["weights"] == "float32"
    assert metadata.export["norms"] == {
        "folded": 14,
        "kept": 13,
    }  # five residual sums, five padded convolutions, three upsamplings
    report = metadata.export["parity"]
    assert report["source"] == "simulated" and report["images"] >= 2
    assert report["max_abs_diff"] <= parity.LOGITS
    assert report["iou_torch"] is None


def test_the_file_says_nothing_of_the_machine_that_wrote_it(file: Path) -> None:
    content = file.read_bytes()
    for word in (b".py", b"site-packages", str(Path(exporter.__file__).parents[3]).encode()):
        assert word not in content


def test_norms_before_pointwise_convolutions_are_gone(file: Path, graph: bytes) -> None:
    def norms_before_pointwise(model: onnx.ModelProto) -> int:
        constants = {each.name: each.dims for each in model.graph.initializer}
        norms = {node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
        return sum(
            node.op_type == "Conv" and node.input[0] in norms and list(constants[node.input[1]][2:]) == [1, 1]
            for node in model.graph.node
        )

    assert norms_before_pointwise(onnx.load_model_from_string(graph)) == 14
    assert norms_before_pointwise(onnx.load(file)) == 0


def test_a_file_of_one_size(weights: Weights, tmp_path: Path) -> None:
    exporter.export(weights, tmp_path / "x.onnx", size=(32, 96))
    segmenter = Segmenter.load(tmp_path / "x.onnx", backend="onnxruntime")
    assert (segmenter.preprocessing.height, segmenter.preprocessing.width) == (32, 96)
    assert onnxruntime.InferenceSession(tmp_path / "x.onnx").get_inputs()[0].shape == [1, 3, 32, 96]
    image = simulate(3, 80, 120)[0]
    images = segmenter.preprocessing.to_input(image)
    with torch.no_grad():
        expected = weights.network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(segmenter.predict_logits(image), expected[0], atol=1e-4)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("limits", [{"LOGITS": -1.0, "ROUNDING": -1.0}, {"PIXELS": 1.1}], ids=["logits", "masks"])
def test_a_file_that_disagrees_is_not_written(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"earlier")
    for name, limit in limits.items():
        monkeypatch.setattr(parity, name, limit)
    with pytest.raises(InputError, match=r"PyTorch's .*nothing was written"):
        exporter.export(weights, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.usefixtures("exported_once")
def test_a_graph_that_computes_something_else_is_noticed(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is with the weights that were given, not with the graph: one changed number is enough."""

    def fold_wrongly(model, forward: bool) -> tuple[int, int]:
        import onnx_ir as ir

        value = model.graph.initializers["head.bias"]
        value.const_value = ir.tensor(value.const_value.numpy() + np.float32(1e-3), name="head.bias")
        return 0, 0

    monkeypatch.setattr(exporter, "fold", fold_wrongly)
    with pytest.raises(InputError, match=r"differ from PyTorch's by 0\.00"):
        exporter.export(weights, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_calls_are_refused_before_any_work(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "to_onnx", None)  # would raise TypeError
    for arguments, message in (
        ({"path": tmp_path / "x.bin"}, r"must end in \.onnx"),
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"precision": "int8"}, "real images for its calibration"),
        ({"size": (60, 64)}, r"the size 60 x 64: .*must divide by 16.*64 x 64"),
        ({"size": (0, 64)}, "the size 0 x 64"),
    ):
        with pytest.raises(UsageError, match=message):
            exporter.export(**{"weights": weights, "path": tmp_path / "x.onnx", **arguments})
    assert not list(tmp_path.iterdir())


def test_exporting_says_nothing_on_stderr(tmp_path: Path) -> None:
    """In a process of its own: warnings are shown once."""
    program = (
        "from cmunext import networks, weights; from cmunext.metadata import Metadata; from cmunext.export.onnx import export\n"
        "from cmunext.image.preprocess import Preprocessing as P\n"
        "d = Metadata('reduced-unet', {'in_channels': 3, 'num_classes': 1}, P(64, 64), ('lesion',))\n"
        f"export(weights.Weights(networks.create('reduced-unet').eval(), d), {str(tmp_path / 'x.onnx')!r})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
    metadata = Metadata.from_properties(onnxruntime.InferenceSession(tmp_path / "x.onnx").get_modelmeta().custom_metadata_map)
    assert metadata.export["norms"]["kept"] == 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_changed_byte_is_noticed(file: Path, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(content)
    with pytest.raises(InputError, match="changed after it was written"):
        Segmenter.load(changed, backend=backend)
