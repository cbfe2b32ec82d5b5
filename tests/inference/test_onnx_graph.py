"""Upsampling behind its convolution, as onnxruntime gets it on a CPU, gives the same numbers; what is something else stays as it is."""

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cmunext.inference.backends import onnx as runtime
from cmunext.inference.backends.onnx_graph import convolve_before_upsampling
from cmunext.inference.named_weights import weights_path
from cmunext.phantom import simulate

CHANNELS = 5


def model(
    outputs=32, kernel=3, scale=2.0, mode="linear", centres="half_pixel", bias=True, half=False, read_twice=False, **options
):
    """Upsampling and a convolution behind it, with ReLU; `half`: weights that are stored as float16."""
    generator = np.random.default_rng(0)
    inputs = CHANNELS // options.get("group", 1)
    weights = generator.normal(size=(outputs, inputs, kernel, kernel)).astype(np.float16 if half else np.float32)
    constants = [numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")]
    constants.append(numpy_helper.from_array(weights, "stored" if half else "weights"))
    nodes = [helper.make_node("Cast", ["stored"], ["weights"], to=TensorProto.FLOAT)] if half else []
    nodes.append(
        helper.make_node("Resize", ["image", "", "scales"], ["large"], mode=mode, coordinate_transformation_mode=centres)
    )
    if bias:
        constants.append(numpy_helper.from_array(generator.normal(size=outputs).astype(np.float32), "bias"))
    given = ["large", "weights", *(["bias"] if bias else [])]
    options = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2, **options}
    nodes += [helper.make_node("Conv", given, ["sums"], **options), helper.make_node("Relu", ["sums"], ["result"])]
    if read_twice:
        nodes.append(helper.make_node("Relu", ["large"], ["twice"]))
    results = ["result", "twice"] if read_twice else ["result"]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k", "rows", "columns"]) for name in results]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])
    graph = helper.make_graph(nodes, "upsampling", [image], ports, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(a_model, image):
    session = onnxruntime.InferenceSession(a_model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


@pytest.mark.parametrize("options", [{}, {"half": True}, {"outputs": 40}, {"centres": "pytorch_half_pixel"}])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (16, 12)])
def test_the_same_numbers(options, size):
    direct, rewritten = model(**options), model(**options)
    assert convolve_before_upsampling(rewritten) == 1
    assert "large" not in {value for node in rewritten.graph.node for value in node.output}
    onnx.checker.check_model(rewritten)
    image = np.random.default_rng(1).normal(size=(2, CHANNELS, *size)).astype(np.float32)
    (expected,), (found,) = run(direct, image), run(rewritten, image)
    assert expected.shape == (2, options.get("outputs", 32), 2 * size[0], 2 * size[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": 16},
        {"kernel": 1},
        {"kernel": 5},
        {"scale": 3.0},
        {"mode": "nearest", "centres": "asymmetric"},
        {"centres": "align_corners"},
        {"bias": False},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"group": CHANNELS, "outputs": 40},
        {"read_twice": True},
    ],
)
def test_what_is_something_else_is_left(options):
    direct = model(**options)
    rewritten = onnx.ModelProto.FromString(direct.SerializeToString())
    assert convolve_before_upsampling(rewritten) == 0
    assert rewritten == direct


def test_a_large_network_is_rewritten_where_it_is_opened(monkeypatch):
    path = weights_path("cmunext-s-busi", ".onnx")
    given = []
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, *args, **named: given.append(model) or opened(model, *args, **named)
    )
    batch = runtime.load(path).metadata.preprocessing.to_input(simulate(0, 256, 256)[0])
    assert given == [str(path)]  # it is small
    expected = runtime.load(path)(batch)
    monkeypatch.setattr(runtime, "WORTH_REWRITING", 0)
    network = runtime.load(path)
    assert isinstance(given[-1], bytes)
    logits = network(batch)
    assert network.metadata == runtime.load(path, as_it_stands=True).metadata
    assert given[-1] == str(path)
    assert not np.array_equal(logits, expected)  # another order of sums
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    np.testing.assert_array_equal(runtime.load(path)(batch), expected)  # without the package onnx


def test_what_is_no_model_is_told_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "WORTH_REWRITING", 0)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model" * 1000)
    with pytest.raises(runtime.InputError, match="it cannot be opened as an ONNX model"):
        runtime.load(path)
