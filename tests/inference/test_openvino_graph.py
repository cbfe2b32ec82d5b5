"""A Skip-Fusion that is split for OpenVINO gives the very same numbers, and what is no Skip-Fusion stays as it is."""

import numpy as np
import pytest

pytest.importorskip("openvino")
import openvino
from openvino import opset13

from cmunext.inference.backends.openvino_graph import split_grouped_convolutions


def fusion(channels: int, groups: int = 2, parts: int = 2, bias: bool = True, activation: bool = True, read_twice: bool = False):
    """Inputs side by side, convolved in groups, with bias and GELU: the model and the shapes of its inputs."""
    generator = np.random.default_rng(0)
    width = channels * groups // parts
    inputs = [opset13.parameter([1, width, 12, 10], np.float32, name=f"part {number}") for number in range(parts)]
    kernel = generator.normal(0, 0.1, (groups * channels, channels, 3, 3)).astype(np.float32)
    grouped = opset13.reshape(kernel, [groups, channels, channels, 3, 3], special_zero=False)  # as the reader for ONNX leaves it
    output = opset13.group_convolution(opset13.concat(inputs, 1), grouped, [1, 1], [1, 1], [1, 1], [1, 1])
    middle = output
    if bias:
        output = opset13.add(output, generator.normal(size=(1, groups * channels, 1, 1)).astype(np.float32))
    if activation:
        output = opset13.gelu(output, "erf")
    results = [output, middle] if read_twice else [output]
    return openvino.Model([opset13.result(one) for one in results], inputs, "fusion")


def run(model, precision: str = "f32") -> list[np.ndarray]:
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    generator = np.random.default_rng(1)
    given = [generator.normal(size=tuple(port.get_shape())).astype(np.float32) for port in model.inputs]
    return [value.copy() for value in compiled(given).values()]


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"activation": False}, {"groups": 3, "parts": 3}, {"read_twice": True}, {"channels": 48}]
)
def test_the_same_numbers(options):
    model = fusion(**{"channels": 32, **options})
    expected = run(model)
    assert split_grouped_convolutions(model) == 1
    assert not [node for node in model.get_ops() if node.get_type_name() == "GroupConvolution"]
    for ours, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"channels": 16}, {"channels": 32, "groups": 4}, {"channels": 96, "groups": 2, "parts": 3}])
def test_what_does_not_fit_or_gains_nothing_is_left(options):
    model = fusion(**options)
    expected = run(model)
    assert split_grouped_convolutions(model) == 0
    for ours, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
