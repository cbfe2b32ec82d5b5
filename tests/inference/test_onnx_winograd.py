"""Convolutions with half of the multiplications, as onnxruntime gets them on a CPU, give the same numbers; others stay as they are."""

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.onnx_graphs import assert_left, model_of, read_in_a_branch, run

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
    return model_of(nodes, inputs, [nodes[-1].output[0]], constants)


@pytest.mark.parametrize("options", [{}, {"dtype": np.float16}, {"outputs": 72}, {"inputs": 128, "outputs": 160, "group": 2}])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 8), (7, 5), (16, 12)])
def test_the_same_numbers(options, size):
    direct, rewritten = model(**options), model(**options)
    assert halve_multiplications(rewritten) == 1
    onnx.checker.check_model(rewritten, full_check=True)
    image = np.random.default_rng(1).normal(size=(2, options.get("inputs", 64), *size)).astype(np.float32)
    (expected,), (found,) = run(direct, image), run(rewritten, image)
    assert expected.shape == (2, options.get("outputs", 64), *size)
    assert not np.array_equal(found, expected) or size == (1, 1)  # another order of sums
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_half_of_the_products_are_left():
    rewritten = model()
    halve_multiplications(rewritten)
    kernels = {each.name: each.dims for each in rewritten.graph.initializer if each.name.endswith("product.weight")}
    # Six for four rows, each of which takes three such where the kernel is 3 x 3.
    assert [tuple(dims) for dims in kernels.values()] == [(64, 64, 1, 3)] * 6


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
    assert_left(halve_multiplications, model(**options))


def test_a_weight_that_a_branch_may_read_is_left():
    direct = model()
    read_in_a_branch(direct, "weights", [64, 64, 3, 3])
    assert_left(halve_multiplications, direct)
