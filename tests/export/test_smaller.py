"""Weights stored as float16, and INT8: how they are stored, what they cost in accuracy, and that INT8 is calibrated on real images."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.datasets import write_dataset

from cmunext.data.layout import Layout
from cmunext.errors import InputError
from cmunext.export import onnx as exporter
from cmunext.export import parity
from cmunext.export.quantize import NARROW
from cmunext.export.samples import Samples, of_dataset
from cmunext.inference.segmenter import Segmenter
from cmunext.weights import Weights

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("data") / "disks"
    write_dataset(root, cases=6, side=64, classes=2)
    return Layout.open(root)


@pytest.fixture
def samples(layout: Layout, weights: Weights) -> Samples:
    return of_dataset(layout, layout.cases, weights.preprocessing, 2)


def test_float16_weights_and_float32_arithmetic(weights: Weights, samples: Samples, tmp_path: Path) -> None:
    exporter.export(weights, tmp_path / "float32.onnx")
    report = exporter.export(weights, tmp_path / "float16.onnx", precision="float16", samples=samples)
    assert 1e-6 < report.max_abs_diff < 1e-2
    assert report.mask_iou > 0.99
    assert report.source == "disks"
    full, half = ((tmp_path / f"float{bits}.onnx") for bits in (32, 16))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    segmenter = Segmenter.load(half, backend="onnxruntime")
    assert segmenter.backend.precision == "float32"
    assert segmenter.metadata.export["weights"] == "float16"
    stored, exact = (
        {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer} for path in (half, full)
    )
    rounded = {name.removesuffix(".float16"): values for name, values in stored.items() if name.endswith(".float16")}
    assert len(rounded) > 30
    for name, values in rounded.items():
        np.testing.assert_array_equal(values, exact[name].astype(np.float16))
    assert all(values.dtype != np.float32 or values.ndim == 1 or not values.size for values in stored.values() if values.ndim)


def test_int8_is_calibrated_and_keeps_narrow_convolutions(weights: Weights, samples: Samples, tmp_path: Path, capfd) -> None:
    path = tmp_path / "int8.onnx"
    report = exporter.export(weights, path, precision="int8", samples=samples)
    assert 1e-4 < report.max_abs_diff < 0.2
    assert report.mask_iou > parity.MASKS["int8"]
    assert capfd.readouterr() == ("", "")
    model = onnx.load(path)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    sources = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    float_ones = [node for node in convolutions if node.input[1] in constants]
    assert {name for node in float_ones for name in (*node.input, *node.output)} >= {"image", "logits"}
    assert all(min(constants[node.input[1]].shape[:2]) < NARROW for node in float_ones)
    assert len(convolutions) - len(float_ones) > 20
    for node in convolutions:
        if node in float_ones:
            continue
        weight = sources[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values, scale = (constants[name] for name in weight.input[:2])
        assert values.dtype == np.int8
        assert min(values.shape[:2]) >= NARROW
        assert scale.shape == values.shape[:1]  # one an output channel
        assert np.abs(values.astype(int)).max() <= 64  # 7 bits
        assert sources[node.input[0]].op_type == "DequantizeLinear"
    segmenter = Segmenter.load(path, backend="onnxruntime")
    assert segmenter.backend.precision == "int8"
    assert segmenter.metadata.export["parity"]["images"] == 6


def test_int8_depends_on_the_images_that_calibrate_it(weights: Weights, samples: Samples, tmp_path: Path) -> None:
    def scales(images: Samples, name: str) -> np.ndarray:
        exporter.export(weights, tmp_path / name, precision="int8", samples=images)
        held = {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / name).graph.initializer}
        return np.array([value for key, value in sorted(held.items()) if key.endswith("_scale") and value.size == 1])  # of maps

    dark = Samples("dark", samples.images // 8, None, samples.preprocessing)
    first, second = scales(samples, "a.onnx"), scales(dark, "b.onnx")
    assert first.size > 20
    assert (second < first).sum() > first.size // 2  # not in all: what is black is black in both
    np.testing.assert_array_equal(scales(samples, "c.onnx"), first)


def test_smaller_files_that_lose_too_much_are_not_written(
    weights: Weights, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MASKS", {"float16": 1.01, "int8": 1.01})
    for precision in ("float16", "int8"):
        with pytest.raises(InputError, match=r"masks whose mean IoU with PyTorch's is .* nothing was written"):
            exporter.export(weights, tmp_path / "x.onnx", precision=precision, samples=samples)
    assert not list(tmp_path.iterdir())


def test_float16_that_would_overflow_stays_float32(weights: Weights) -> None:
    import onnx_ir as ir

    from cmunext.export.quantize import halve

    model = exporter.to_onnx(weights, weights.preprocessing, fixed=False)
    value = model.graph.initializers["head.weight"]
    value.const_value = ir.tensor(value.const_value.numpy() + np.float32(1e6), name="head.weight")
    halve(model)
    assert "head.weight" in model.graph.initializers
    assert "stem.conv.weight" not in model.graph.initializers
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
