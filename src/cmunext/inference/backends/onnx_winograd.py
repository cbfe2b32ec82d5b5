"""3 x 3 convolutions as onnxruntime runs them fastest on a CPU: with half of the multiplications, by Winograd's minimal filtering F(4, 3).

Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4, from top to bottom: six rows become six others, each of
which goes through a 1 x 3 convolution, and what comes out becomes four rows. onnxruntime has no such kernels, but each step is one
that it has. The same function, borders included, and in float32 as exact. In narrow convolutions the steps around the products take what those
save; a GPU has kernels of its own, so it is done here and not in the exported file.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from cmunext.inference.backends.onnx_rewriting import constant, has_subgraphs, replace, weights_and_bias
from cmunext.inference.onnx_reading import Reading, attributes

FEWEST_CHANNELS = 64  # of a group, read and written; narrower ones gain nothing
# Six rows of the map, from the one above, as six others.
LIFT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
# A kernel's three rows as the six that these are multiplied by.
KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
# The six products as four rows: a value, its factor, what it is added to, and the sum's name.
LOWER = (
    ("1.product", 1, "2.product", "sums"),
    ("2.product", -2, "sums", "differences"),
    ("3.product", 1, "4.product", "wide_sums"),
    ("4.product", -2, "wide_sums", "wide_differences"),
    ("0.product", 1, "sums", "first"),
    ("5.product", 1, "differences", "last"),
    ("wide_sums", 1, "first", "row.0"),
    ("wide_differences", 2, "differences", "row.1"),
    ("wide_sums", 4, "sums", "row.2"),
    ("wide_differences", 8, "last", "row.3"),
)


def halve_multiplications(model: onnx.ModelProto) -> int:
    """Rewrite, in place, each 3 x 3 convolution of many channels that keeps its map's size. Gives how many there were."""
    graph = model.graph
    if has_subgraphs(graph):
        return 0  # what reads a weight there is not seen here
    reading = Reading(graph)
    replacements = {}
    for node in reading.nodes:
        parts = weights_and_bias(node, reading)
        groups = attributes(node).get("group", 1)
        if parts and min(parts[0].shape[1], len(parts[0]) // groups) >= FEWEST_CHANNELS:
            replacements[node.output[0]] = list(_Writer(graph, node.output[0], groups).write(node.input[0], *parts))
    replace(graph, replacements)
    return len(replacements)


class _Writer:
    """Writes the nodes that stand for one convolution; what it names begins with the convolution's result."""

    def __init__(self, graph: onnx.GraphProto, result: str, groups: int):
        self._graph, self._result, self._groups = graph, result, groups

    def write(self, source: str, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Iterator[onnx.NodeProto]:
        """weights : outputs x inputs of a group x 3 x 3."""
        outputs, inputs = len(weights), weights.shape[1] * self._groups
        kernels = np.tensordot(KERNEL, weights, axes=(1, 2)).astype(np.float32)  # six of one row each, summed in float64
        for number, kernel in enumerate(kernels):
            yield self._lift(source, number, inputs)
            yield self._multiply(number, kernel[:, :, np.newaxis], bias)
        yield from self._lower(outputs)
        yield from self._interleave(source, outputs)

    def _lift(self, source: str, number: int, channels: int) -> onnx.NodeProto:
        """One of the six rows for every four of the map; behind its last row there are zeros, as many as the last four need."""
        lifted = f"{self._result}.{number}.lifted"
        kernel = np.tile(LIFT[number].reshape(1, 1, 6, 1), (channels, 1, 1, 1))
        inputs = [source, constant(self._graph, f"{lifted}.weight", kernel)]
        return helper.make_node("Conv", inputs, [lifted], kernel_shape=[6, 1], strides=[4, 1], pads=[1, 0, 4, 0], group=channels)

    def _multiply(self, number: int, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.NodeProto:
        product = f"{self._result}.{number}.product"
        inputs = [f"{self._result}.{number}.lifted", constant(self._graph, f"{product}.weight", kernel)]
        if number == 1:
            inputs.append(constant(self._graph, f"{product}.bias", bias))  # all four rows have this product once
        return helper.make_node("Conv", inputs, [product], kernel_shape=[1, 3], pads=[0, 1, 0, 1], group=self._groups)

    def _lower(self, channels: int) -> Iterator[onnx.NodeProto]:
        for added, factor, to, total in LOWER:
            left, right, result = (f"{self._result}.{name}" for name in (added, to, total))
            if factor != 1:  # a depthwise convolution keeps to the runtime's blocked layout
                kernel = constant(self._graph, f"{result}.factor", np.full((channels, 1, 1, 1), factor, np.float32))
                yield helper.make_node("Conv", [left, kernel], [f"{result}.added"], kernel_shape=[1, 1], group=channels)
                left = f"{result}.added"
            yield helper.make_node("Add", [left, right], [result])

    def _interleave(self, source: str, channels: int) -> Iterator[onnx.NodeProto]:
        """Four rows beside each other are one of four times the width, which in memory is the four below each other. Rows too many go."""
        name = self._result
        yield helper.make_node("Concat", [f"{name}.row.{number}" for number in range(4)], [f"{name}.wide"], axis=3)
        yield helper.make_node("Shape", [source], [f"{name}.height"], start=2, end=3)
        yield helper.make_node("Shape", [source], [f"{name}.width"], start=3, end=4)
        known = constant(self._graph, f"{name}.known", np.array([0, channels, -1], np.int64))
        yield helper.make_node("Concat", [known, f"{name}.width"], [f"{name}.shape"], axis=0)
        yield helper.make_node("Reshape", [f"{name}.wide", f"{name}.shape"], [f"{name}.rows"])
        start = constant(self._graph, f"{name}.start", np.array([0], np.int64))
        axis = constant(self._graph, f"{name}.axis", np.array([2], np.int64))
        yield helper.make_node("Slice", [f"{name}.rows", start, f"{name}.height", axis], [name])
