"""Convolutions with half of the multiplications, as onnxruntime gets them on a CPU, give the same numbers; others stay as they are."""

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cmunext.inference.backends.onnx_winograd import halve_multiplications


def model(inputs=64, outputs=64, kernel=3, group=1, dtype=np.float32, bias=True, taken=False, **options):
    """A convolution with ReLU behind it; `dtype`: what the weights are stored as."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(outputs, inputs // group, kernel, kernel)).astype(dtype)
    constants = [numpy_helper.from_array(weights, "stored")]
    constants += [numpy_helper.from_array(generator.normal(size=outputs).astype(np.float32), "bias")] if bias else []
    options = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2, "group": group, **options}
    nodes = [
        helper.make_node("Cast", ["stored"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", "weights", *(["bias"] if bias else [])], ["sums"], **options),
        helper.make_node("Relu", ["sums"], ["sums.row.0" if taken else "result"]),
    ]
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["n", "k", "rows", "columns"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", inputs, "h", "w"])
    graph = helper.make_graph(nodes, "convolution", [image], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(a_model, image):
    session = onnxruntime.InferenceSession(a_model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("options", [{}, {"dtype": np.float16}, {"outputs": 72}, {"inputs": 128, "outputs": 160, "group": 2}])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 8), (7, 5), (16, 12)])
def test_the_same_numbers(options, size):
    direct, rewritten = model(**options), model(**options)
    assert halve_multiplications(rewritten) == 1
    onnx.checker.check_model(rewritten, full_check=True)
    image = np.random.default_rng(1).normal(size=(2, options.get("inputs", 64), *size)).astype(np.float32)
    expected, found = run(direct, image), run(rewritten, image)
    assert expected.shape == (2, options.get("outputs", 64), *size)
    assert not np.array_equal(found, expected) or size == (1, 1)  # another order of sums
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_half_of_the_products_are_left():
    rewritten = model()
    halve_multiplications(rewritten)
    kernels = {each.name: each.dims for each in rewritten.graph.initializer if each.name.endswith("product.weight")}
    assert [tuple(dims) for dims in kernels.values()] == [
        (64, 64, 1, 3)
    ] * 6  # for four rows, where the kernel of 3 x 3 has 12 such


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": 32},
        {"outputs": 32},
        {"group": 2},
        {"kernel": 1},
        {"kernel": 5},
        {"bias": False},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"pads": [0, 0, 0, 0]},
        {"auto_pad": "SAME_UPPER", "pads": None},
        {"taken": True},
    ],
)
def test_what_is_something_else_is_left(options):
    direct = model(**options)
    rewritten = onnx.ModelProto.FromString(direct.SerializeToString())
    assert halve_multiplications(rewritten) == 0
    assert rewritten == direct


def test_a_weight_that_a_branch_may_read_is_left():
    direct = model(dtype=np.float32)
    branches = {}
    for name in ("then_branch", "else_branch"):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64, 3, 3])
        branches[name] = helper.make_graph([helper.make_node("Relu", ["weights"], [name])], name, [], [result])
    direct.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    direct.graph.node.append(helper.make_node("If", ["always"], ["branch"], **branches))
    rewritten = onnx.ModelProto.FromString(direct.SerializeToString())
    assert halve_multiplications(rewritten) == 0
    assert rewritten == direct
