"""Upsampling and the convolution behind it as onnxruntime runs them fastest on a CPU: first the convolution.

The nine products of a 3 x 3 kernel commute with upsampling. Taken at the low resolution, they are a quarter of the arithmetic; then they are
upsampled, shifted and summed, rows first. The same function, the borders included: on one core of an EPYC (Zen 3) 11 % less time for
CMUNeXt and CMUNeXt-L, 3 % for CMUNeXt-S. OpenVINO would round each product to bfloat16, and a GPU would wait for memory, so it is done here
and not in the exported file.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from cmunext.inference.backends.onnx_rewriting import constant, has_subgraphs, replace, weights_and_bias
from cmunext.inference.onnx_reading import Reading

FEWEST_OUTPUTS = 32  # of a convolution; those of fewer gain nothing


def convolve_before_upsampling(model: onnx.ModelProto) -> int:
    """Rewrite, in place, each bilinear upsampling by two whose only reader is a 3 x 3 convolution. Gives how many there were."""
    graph = model.graph
    if has_subgraphs(graph):
        return 0  # what reads a value there is not seen here
    reading = Reading(graph)
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for resize in reading.nodes:
        node = reading.only_reader(resize.output[0]) if reading.doubles(resize) else None
        parts = weights_and_bias(node, reading) if node else None
        if node and parts and reading.options(node, group=1) and len(parts[0]) >= FEWEST_OUTPUTS:
            replacements[resize.output[0]] = []
            writer = _Writer(graph, node.output[0], len(parts[0]))
            replacements[node.output[0]] = list(writer.write(resize.input[0], *parts))
    replace(graph, replacements)
    return len(replacements) // 2


class _Writer:
    """Writes the nodes that stand for one convolution behind upsampling; what it names begins with the convolution's result."""

    def __init__(self, graph: onnx.GraphProto, result: str, outputs: int):
        self._graph, self._result, self._outputs = graph, result, outputs

    def write(self, source: str, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Iterator[onnx.NodeProto]:
        """weights : outputs x inputs x 3 x 3."""
        for column in range(3):
            for row in range(3):
                tap = f"{self._result}.{column}.{row}"
                inputs = [source, constant(self._graph, f"{tap}.weight", weights[:, :, row : row + 1, column : column + 1])]
                if row == column == 1:
                    inputs.append(constant(self._graph, f"{tap}.bias", bias))  # upsampling leaves a constant as it is
                yield helper.make_node("Conv", inputs, [tap], kernel_shape=[1, 1])
            yield from self._upsample_and_sum(f"{self._result}.{column}", axis=2)
        yield from self._upsample_and_sum(self._result, axis=3)

    def _upsample_and_sum(self, result: str, axis: int) -> Iterator[onnx.NodeProto]:
        """A kernel's three taps along an axis, `result`.0 to .2: doubled along it, shifted by -1, 0 and 1 with zeros from outside, summed."""
        scales = constant(self._graph, f"{result}.scales", np.array([1, 1, 1 + (axis == 2), 1 + (axis == 3)], np.float32))
        large = [f"{result}.{number}.large" for number in range(3)]
        for number in range(3):
            options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            yield helper.make_node("Resize", [f"{result}.{number}", "", scales], [large[number]], **options)
        yield self._shift(large[0], 0, axis)
        yield helper.make_node("Add", [f"{large[0]}.shifted", large[1]], [f"{result}.sum"])
        yield self._shift(large[2], 2, axis)
        yield helper.make_node("Add", [f"{large[2]}.shifted", f"{result}.sum"], [result])

    def _shift(self, value: str, number: int, axis: int) -> onnx.NodeProto:
        """A depthwise convolution that takes the pixel before (`number` 0) or behind (2): the runtime adds in the same go."""
        kernel = np.zeros((self._outputs, 1, 3), np.float32)
        kernel[:, :, number] = 1
        size = [3, 1] if axis == 2 else [1, 3]
        weights = constant(self._graph, f"{value}.shifted.weight", kernel.reshape(-1, 1, *size))
        pads = [side // 2 for side in size] * 2
        return helper.make_node("Conv", [value, weights], [f"{value}.shifted"], kernel_shape=size, pads=pads, group=self._outputs)
