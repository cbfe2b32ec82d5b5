"""Reading the graph of an .onnx file: its constants, who reads what, and the attributes of nodes."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

# What ONNX takes for attributes that a node does not have, where they matter to CMUNeXt.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "auto_pad": b"NOTSET", "group": 1},
    "MaxPool": {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "auto_pad": b"NOTSET", "ceil_mode": 0},
    "BatchNormalization": {"epsilon": 1e-5, "training_mode": 0},
    "Gelu": {"approximate": b"none"},
    "Resize": {"mode": b"nearest", "coordinate_transformation_mode": b"half_pixel"},
}


class Reading:
    """A graph: the nodes that compute something, in order, and the constants (weights that are stored as float16 as float32)."""

    def __init__(self, graph: onnx.GraphProto):
        self.constants: dict[str, NDArray[Any]] = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif (
                node.op_type == "Cast"
                and node.input[0] in self.constants
                and attributes(node).get("to") == onnx.TensorProto.FLOAT
            ):
                self.constants[node.output[0]] = self.constants[node.input[0]].astype(np.float32)
            else:
                self.nodes.append(node)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                self._readers.setdefault(value, []).append(node)
        self.output = graph.output[0].name
        self._results = {each.name for each in graph.output}
        self.names = {*self.constants, *self._readers, *(value for node in self.nodes for value in node.output)}

    def only_reader(self, value: str) -> onnx.NodeProto | None:
        """The node that reads a value, where it is one alone."""
        readers = self._readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self._results else None

    def options(self, node: onnx.NodeProto, **wanted: Any) -> bool:
        """Whether a node's attributes are these."""
        held = attributes(node)
        return all(held.get(name) == value for name, value in wanted.items())

    def doubles(self, node: onnx.NodeProto) -> bool:
        """Whether a node is bilinear upsampling by two with half-pixel centres."""
        of_whole = node.op_type == "Resize" and len(node.input) == 3 and not node.input[1]
        scales = self.constants.get(node.input[2]) if of_whole else None
        by_two = scales is not None and scales.tolist() == [1, 1, 2, 2]
        centres = (b"half_pixel", b"pytorch_half_pixel")
        held = attributes(node)
        return by_two and held["mode"] == b"linear" and held["coordinate_transformation_mode"] in centres


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes, with ONNX's own values for those that it does not have."""
    return {**DEFAULTS.get(node.op_type, {}), **{each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}}
