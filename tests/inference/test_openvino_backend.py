"""The OpenVINO backend: the same file, the same answers as ONNX Runtime, and the precision that was asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.tiny_network import DARK, dark_discs, describe, write_network

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends.signature import PRECISION
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import KEY
from cmunext.seal import SEAL, sealed

pytest.importorskip("openvino")
from cmunext.inference.backends import openvino

needs_bfloat16 = pytest.mark.skipif(not openvino.runs_bfloat16(), reason="this CPU does not compute in bfloat16")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx")


def wide(path: Path) -> Path:
    """A 3 x 3 convolution over the three colours with random weights: sums long enough for a precision to show."""
    generator = np.random.default_rng(0)
    model = onnx.load(write_network(path))
    initialisers = {each.name: each for each in model.graph.initializer}
    weight = generator.normal(0, 3, (1, 3, 7, 7)).astype(np.float32)
    initialisers["weight"].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pads", [3, 3, 3, 3]))
    onnx.save(model, path)
    return path


def test_it_gives_what_onnxruntime_gives(network: Path, tmp_path: Path) -> None:
    batch = np.random.default_rng(1).normal(size=(5, 3, 64, 64)).astype(np.float32)
    for path in (network, wide(tmp_path / "wide.onnx")):
        ours = Segmenter.load(path, backend="openvino")
        assert (ours.backend.name, ours.backend.precision) == ("openvino", "float32")
        theirs = Segmenter.load(path, backend="onnxruntime")
        np.testing.assert_allclose(ours.backend(batch), theirs.backend(batch), rtol=1e-5, atol=1e-4)
        assert ours.metadata == theirs.metadata
        image = dark_discs()
        np.testing.assert_array_equal(ours(image).mask, theirs(image).mask)


def test_sizes_streams_and_threads_change_nothing(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide.onnx")
    generator = np.random.default_rng(2)
    batches = [generator.normal(size=(count, 3, *size)).astype(np.float32) for count, size in ((7, (64, 64)), (3, (32, 48)))]
    alone = Segmenter.load(path, backend="openvino", threads=1).backend
    for options in ({"streams": 2}, {"streams": 3, "threads": 2}, {"threads": 2}):
        together = Segmenter.load(path, backend="openvino", **options).backend
        for batch in batches:
            expected = np.concatenate([alone(image[None]) for image in batch])
            np.testing.assert_array_equal(alone(batch), expected)
            np.testing.assert_allclose(together(batch), expected, rtol=1e-6, atol=1e-5)


@needs_bfloat16
def test_the_precision_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide.onnx")
    batch = np.random.default_rng(3).normal(size=(1, 3, 64, 64)).astype(np.float32)
    exact = Segmenter.load(path, backend="onnxruntime").backend(batch)
    lower = Segmenter.load(path, backend="openvino", precision="bfloat16").backend
    assert lower.precision == "bfloat16"
    error = {name: np.abs(each(batch) - exact).max() / np.abs(exact).max() for name, each in (
        ("float32", Segmenter.load(path, backend="openvino", precision="float32").backend),
        ("default", Segmenter.load(path, backend="openvino").backend),
        ("bfloat16", lower),
    )}  # fmt: skip
    assert error["float32"] < 1e-6
    assert error["default"] < 1e-6
    assert 1e-4 < error["bfloat16"] < 2e-2  # 8 bits of mantissa


def test_bfloat16_is_refused_where_the_cpu_has_none(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "runs_bfloat16", lambda core=None: False)
    with pytest.raises(UsageError, match="which this CPU does not compute in"):
        Segmenter.load(network, backend="openvino", precision="bfloat16")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_file_of_another_precision_says_so_and_passes_for_no_other(tmp_path: Path, backend: str) -> None:
    path = write_network(tmp_path / "int8.onnx", properties={KEY: describe().to_json(), PRECISION: "int8"})
    assert Segmenter.load(path, backend=backend).backend.precision == "int8"
    for precision in ("float32", *(["bfloat16"] if backend == "openvino" and openvino.runs_bfloat16() else [])):
        with pytest.raises(UsageError, match="computes in int8"):
            Segmenter.load(path, backend=backend, precision=precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "openvino", "device": "cuda"}, "openvino runs on the cpu"),
        ({"backend": "openvino", "precision": "float16"}, "no precision 'float16'"),
        ({"backend": "openvino", "streams": 0}, "streams is 0"),
        ({"backend": "onnxruntime", "threads": 1 << 32}, "threads is 4294967296"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, "onnxruntime computes in float32"),
        ({"backend": "onnxruntime", "streams": 2}, "onnxruntime has one"),
    ],
)
def test_a_wrong_call(network: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Segmenter.load(network, **arguments)


def test_weights_that_are_no_numbers(network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    weights = next(each for each in model.graph.initializer if onnx.numpy_helper.to_array(each).dtype == np.float32)
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed.flat[0] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(InputError, match=r"nan.onnx: the network has weights that are not finite"):
        Segmenter.load(tmp_path / "nan.onnx", backend="openvino")


def test_bad_models_are_refused_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            Segmenter.load(path, backend="openvino")
        assert not isinstance(caught.value, UsageError)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    text = tmp_path / "text.onnx"
    text.write_text("this is no model\n" * 30)
    refused(text, "cannot be opened as an ONNX model")
    whole = write_network(tmp_path / "whole.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(cut, "cannot be opened as an ONNX model|does not describe itself")
    refused(write_network(tmp_path / "foreign.onnx", properties={}), "does not describe itself")
    refused(write_network(tmp_path / "damaged.onnx", properties={KEY: "{"}), "not JSON")
    refused(write_network(tmp_path / "names.onnx", names=("x", "y")), "must have the input image and the output logits")
    lying = describe(replace(DARK, channels="grey", mean=(0.5,), std=(0.5,))).to_json()
    refused(write_network(tmp_path / "channels.onnx", properties={KEY: lying}), "the model's image is")
    lying = describe(classes=("a", "b")).to_json()
    refused(write_network(tmp_path / "classes.onnx", properties={KEY: lying}), "the model's logits is")
    whole = write_network(tmp_path / "sealed.onnx", properties={KEY: describe().to_json(), **SEAL})
    whole.write_bytes(sealed(whole.read_bytes(), whole))
    assert Segmenter.load(whole, backend="openvino").metadata == describe()
    whole.write_bytes(whole.read_bytes().replace(b'"lesion"', b'"tumour"'))
    refused(whole, "changed after it was written")
    assert capfd.readouterr().err == ""
