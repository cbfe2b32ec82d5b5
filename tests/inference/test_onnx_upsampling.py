"""Upsampling behind its convolution, as onnxruntime gets it on a CPU, gives the same numbers; what is something else stays as it is."""

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tests.onnx_graphs import assert_left, model_of, read_in_a_branch, run

from cmunext.inference.backends import onnx as runtime
from cmunext.inference.backends.onnx_upsampling import convolve_before_upsampling
from cmunext.inference.named_weights import weights_path
from cmunext.phantom import simulate

CHANNELS = 5
ANY_SIZE = range(1 << 40)


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
    return model_of(nodes, CHANNELS, results, constants)


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
    assert_left(convolve_before_upsampling, model(**options))


def with_a_branch_that_reads_it():
    """The upsampled map is read by a subgraph too."""
    direct = model()
    read_in_a_branch(direct, "large", ["n", CHANNELS, "rows", "columns"])
    return direct


def with_a_name_taken():
    direct = model()
    direct.graph.node.append(helper.make_node("Relu", ["result"], ["sums.0.0"]))
    direct.graph.output[0].name = "sums.0.0"
    return direct


def with_the_upsampled_as_a_result():
    direct = model()
    direct.graph.output.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, ["n", CHANNELS, "rows", "columns"]))
    return direct


def in_float16():
    direct = model()
    for held in [each for each in direct.graph.initializer if each.name != "scales"]:
        held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held).astype(np.float16), held.name))
    direct.graph.node.insert(0, helper.make_node("Cast", ["image"], ["narrow"], to=TensorProto.FLOAT16))
    direct.graph.node[1].input[0] = "narrow"
    direct.graph.node.append(helper.make_node("Cast", ["result"], ["wide"], to=TensorProto.FLOAT))
    direct.graph.output[0].name = "wide"
    return direct


def of_a_region():
    direct = model()
    direct.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "roi"))
    direct.graph.node[0].input[1] = "roi"
    return direct


@pytest.mark.parametrize(
    "make", [with_a_branch_that_reads_it, with_a_name_taken, with_the_upsampled_as_a_result, in_float16, of_a_region]
)
def test_what_could_not_run_any_more_is_left(make):
    direct, rewritten = make(), make()
    assert convolve_before_upsampling(rewritten) == 0
    image = np.random.default_rng(1).normal(size=(1, CHANNELS, 6, 4)).astype(np.float32)
    for found, expected in zip(run(rewritten, image), run(direct, image), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_rewritten_graph_that_does_not_run_is_not_taken(monkeypatch):
    path = weights_path("cmunext-s-busi", ".onnx")
    monkeypatch.setattr(runtime, "WORTH_REWRITING", ANY_SIZE)
    monkeypatch.setattr(runtime, "_rewritten", lambda path: b"no model")
    assert runtime.load(path).metadata.network == "cmunext-s"


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
    monkeypatch.setattr(runtime, "WORTH_REWRITING", ANY_SIZE)
    network = runtime.load(path)
    assert isinstance(given[-1], bytes)
    logits = network(batch)
    assert network.metadata == runtime.load(path, as_it_stands=True).metadata
    assert given[-1] == str(path)
    assert not np.array_equal(logits, expected)  # another order of sums
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    monkeypatch.setattr(runtime, "WORTH_REWRITING", range(path.stat().st_size))
    np.testing.assert_array_equal(runtime.load(path)(batch), expected)  # too large
    monkeypatch.setattr(runtime, "WORTH_REWRITING", ANY_SIZE)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    np.testing.assert_array_equal(runtime.load(path)(batch), expected)  # without the package onnx


def test_what_is_no_model_is_told_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "WORTH_REWRITING", ANY_SIZE)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model" * 1000)
    with pytest.raises(runtime.InputError, match="it cannot be opened as an ONNX model"):
        runtime.load(path)
