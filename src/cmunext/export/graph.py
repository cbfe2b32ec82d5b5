"""What the passes over an exported graph share: reading a node's constants and attributes, and replacing a constant."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.float64]


def constant(value: ir.Value) -> Array:
    """The numbers of a constant as float64."""
    return ir.convenience.get_const_tensor(value).numpy().astype(np.float64)


def constant_or_none(value: ir.Value | None) -> Array | None:
    """The numbers of a value as float64, or None when it is computed, or missing."""
    return None if value is None or ir.convenience.get_const_tensor(value) is None else constant(value)


def has_constants(node: ir.Node) -> bool:
    """Whether everything that a node reads beside its first input is constant."""
    return all(value is None or ir.convenience.get_const_tensor(value) is not None for value in node.inputs[1:])


def change(node: ir.Node, index: int, function: Callable[[Array], Array]) -> None:
    """Replace the constant at `index` of `node` by a function of it, rounded to its type; a bias that a convolution lacks is zeros."""
    weight = node.inputs[1]
    if index == len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    values = np.zeros(weight.shape[0]) if old is None else constant(old)
    dtype = ir.convenience.get_const_tensor(old or weight).dtype
    name = f"{(old or weight).name}.{node.outputs[0].name}.{index}"  # its own, for the old one may have other readers
    new = ir.val(name, const_value=ir.tensor(function(values).astype(dtype.numpy()), name=name))
    node.replace_input_with(index, new)
    node.graph.register_initializer(new)


def drop_unread(graph: ir.Graph) -> None:
    """Remove the constants that nothing reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is a whole number."""
    return node.attributes[name].as_int() if name in node.attributes else default
