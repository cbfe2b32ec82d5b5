"""What rewriting the graph of an .onnx file takes: which convolutions may be replaced, and putting other nodes in their place."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cmunext.inference.onnx_reading import Reading

SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
DIRECT = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "auto_pad": b"NOTSET"}


def has_subgraphs(graph: onnx.GraphProto) -> bool:
    """Whether a node has a graph of its own, which may read any value of this one."""
    return any(attribute.type in SUBGRAPHS for node in graph.node for attribute in node.attribute)


def weights_and_bias(node: onnx.NodeProto, reading: Reading) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Of a 3 x 3 convolution in float32 that gives a map of its source's size: weights, outputs x inputs of a group x 3 x 3, and bias.

    None for anything else, and where what is named after its result is there already.
    """
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or not reading.options(node, **DIRECT):
        return None
    parts = [reading.constants[name] for name in node.input[1:] if name in reading.constants]
    taken = any(name.startswith(f"{node.output[0]}.") for name in reading.names)
    if [part.dtype for part in parts] != [np.float32] * 2 or parts[0].shape[2:] != (3, 3) or taken:
        return None
    return parts[0], parts[1]


def constant(graph: onnx.GraphProto, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
    """Give a graph a constant, and say its name."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def replace(graph: onnx.GraphProto, replacements: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Put nodes in the place of each that computes one of these values; constants that nothing reads any more go too."""
    replaced = [node for node in graph.node if node.output[0] in replacements]
    nodes = [each for node in graph.node for each in replacements.get(node.output[0], [node])]
    unread = {name for node in replaced for name in node.input} - {name for node in nodes for name in node.input}
    constants = [each for each in graph.initializer if each.name not in unread]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
