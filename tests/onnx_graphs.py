"""Small ONNX graphs: made of nodes, run, read in a branch, and held against what rewriting leaves as it is."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def model_of(
    nodes: Sequence[onnx.NodeProto], channels: int, results: Sequence[str], constants: Sequence[onnx.TensorProto]
) -> onnx.ModelProto:
    """A model of maps of any size: it reads `image`, of so many channels, and gives these results."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k", "rows", "columns"]) for name in results]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, "h", "w"])
    graph = helper.make_graph(nodes, "small", [image], ports, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def read_in_a_branch(model: onnx.ModelProto, value: str, shape: Sequence[int | str]) -> None:
    """Give a model a result `branch` that a graph within a node makes of this value."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        branches[name] = helper.make_graph([helper.make_node("Relu", [value], [name])], name, [], [result])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(helper.make_node("If", ["always"], ["branch"], **branches))
    model.graph.output.append(helper.make_tensor_value_info("branch", TensorProto.FLOAT, shape))


def assert_left(rewrite: Callable[[onnx.ModelProto], int], model: onnx.ModelProto) -> None:
    rewritten = onnx.ModelProto.FromString(model.SerializeToString())
    assert rewrite(rewritten) == 0
    assert rewritten == model
