"""Small ONNX graphs in float64, and running them with the reference evaluator of the onnx package: exact to rounding, borders included."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 20
RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    """Normal noise, float64."""
    return RANDOM.standard_normal(shape)


def norm(name: str, source: str, result: str, channels: int, constants: dict[str, np.ndarray]) -> onnx.NodeProto:
    """A BatchNormalization with statistics of its own, which are added to `constants`."""
    values = (1 + 0.3 * draw(channels), draw(channels), draw(channels), 0.2 + draw(channels) ** 2)
    names = [f"{name}.{part}" for part in ("weight", "bias", "mean", "variance")]
    constants.update(zip(names, values, strict=True))
    return helper.make_node("BatchNormalization", [source, *names], [result], name, epsilon=1e-5)


def build(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    input_shape: Sequence[int],
    outputs: Sequence[str] = ("y",),
) -> ir.Model:
    """A model with the input "x"; shapes inside are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, list(input_shape))],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """All outputs, in float64."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ReferenceEvaluator(proto).run(None, {"x": x})


def operators(model: ir.Model) -> list[str]:
    """The operators in their order."""
    return [node.op_type for node in model.graph]
