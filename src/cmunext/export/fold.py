"""Exact simplification of an exported graph: BatchNorm disappears into the layers before or behind it.

In evaluation a BatchNorm is one multiplication and one addition per channel, z = scale * y + shift. Two places take it in without
changing the function:

- the convolution or linear layer that makes y, when nothing else reads y: conv -> norm -> ReLU of U-Net and its kin;
- every convolution without padding, and every linear layer, that reads z. In CMUNeXt the order is conv -> GELU -> norm -> conv, and
  this is where the norms before its 1 x 1 convolutions go. On the way z may be resized, concatenated or have its axes exchanged.

What stays where it is: a norm read by a convolution with padding (its border is filled with 0 and not with `shift`, so no bias makes up
for the shift there), and one whose result is added to another (the residual of the CMUNeXt block). The arithmetic here is float64,
rounded once to the type of the weights.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cmunext.export.graph import Array, change, constant, constant_or_none, drop_unread, has_constants, integer

Vector = NDArray[np.float64]  # one number a channel
Edit = Callable[[], None]


def fold(model: ir.Model, forward: bool = True) -> tuple[int, int]:
    """Fold, in place, every BatchNorm that can be folded exactly. Returns how many were folded, and how many remain.

    `forward` = False folds into what makes a value and not into what reads it: INT8 needs the norms between GELU and convolution,
    which bring the channels to one range (without them the IoU of CMUNeXt-S falls from 0.67 to 0.33).
    """
    graph = model.graph
    norms = [node for node in graph if node.op_type == "BatchNormalization"]
    folded = 0
    for norm in norms:
        if (affine := _affine(norm)) is None:
            continue
        edits = _into_producer(norm.inputs[0], 1, *affine)
        if edits is None and forward:
            edits = _into_readers(norm.outputs[0], 1, *affine)
        if edits is None:
            continue
        for edit in edits:
            edit()
        norm.outputs[0].replace_all_uses_with(norm.inputs[0], replace_graph_outputs=True)
        graph.remove(norm, safe=True)
        folded += 1
    drop_unread(graph)
    return folded, len(norms) - folded


def _affine(norm: ir.Node) -> tuple[Vector, Vector] | None:
    """Scale and shift of a BatchNorm, or None when its statistics are no constants (or it is in training mode)."""
    weight, bias, mean, variance = (constant_or_none(value) for value in norm.inputs[1:5])
    if weight is None or bias is None or mean is None or variance is None or integer(norm, "training_mode", 0):
        return None
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    scale = weight / np.sqrt(variance + epsilon)
    return scale, bias - mean * scale


def _into_producer(value: ir.Value, axis: int, scale: Vector, shift: Vector) -> list[Edit] | None:
    """The edits after which the layer that makes `value` gives scale * value + shift along `axis`; None when there are none."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    match node.op_type:
        case "Transpose":
            return _into_producer(node.inputs[0], _permutation(node)[axis], scale, shift)
        case "Add" if (bias := _bias_index(node, axis)) is not None:
            edits = _into_producer(node.inputs[1 - bias], axis, scale, np.zeros_like(shift))
            return None if edits is None else [*edits, partial(change, node, bias, lambda old: old * scale + shift)]
        case "MatMul" if axis == len(value.shape) - 1 and _is_matrix(node.inputs[1]) and not shift.any():
            return [partial(change, node, 1, lambda old: old * scale)]  # a bias is the Add behind it
        case "Conv" if axis == 1 and has_constants(node):
            return [
                partial(change, node, 1, lambda old: old * _along(0, scale, old.ndim)),
                partial(change, node, 2, lambda old: old * scale + shift),
            ]
    return None


def _into_readers(value: ir.Value, axis: int, scale: Vector, shift: Vector) -> list[Edit] | None:
    """The edits after which all that read `value` = scale * y + shift can read y instead; None when one of them cannot."""
    if value.is_graph_output() or not value.uses():
        return None
    edits: list[Edit] = []
    for node, index in value.uses():
        more = _into_reader(node, index, axis, scale, shift)
        if more is None:
            return None
        edits += more
    return edits


def _into_reader(node: ir.Node, index: int, axis: int, scale: Vector, shift: Vector) -> list[Edit] | None:
    result = node.outputs[0]
    match node.op_type:
        case "Conv" if index == 0 and axis == 1 and has_constants(node) and not _is_padded(node):
            return [partial(_into_convolution, node, scale, shift)]
        case "MatMul" if index == 0 and axis == len(result.shape) - 1 and _is_matrix(node.inputs[1]):
            weight = constant(node.inputs[1])
            edits = _into_readers(result, axis, np.ones(weight.shape[1]), shift @ weight) if shift.any() else []
            return None if edits is None else [*edits, partial(change, node, 1, lambda old: old * scale[:, None])]
        case "Add" if (scale == 1).all() and (bias := _bias_index(node, axis)) == 1 - index:
            return [partial(change, node, bias, lambda old: old + shift)]
        case "Transpose":
            return _into_readers(result, _permutation(node).index(axis), scale, shift)
        case "Resize" if index == 0 and axis == 1 and _keeps_constants(node):
            return _into_readers(result, axis, scale, shift)
        case "Concat" if integer(node, "axis", 0) % len(result.shape) == axis:
            widths = [value.shape[axis] for value in node.inputs]
            if not all(isinstance(width, int) for width in widths):
                return None
            before, after = sum(widths[:index]), sum(widths[index + 1 :])
            return _into_readers(result, axis, np.pad(scale, (before, after), constant_values=1), np.pad(shift, (before, after)))
    return None


def _into_convolution(node: ir.Node, scale: Vector, shift: Vector) -> None:
    weight = constant(node.inputs[1])  # groups * outs x ins x kernel
    groups = integer(node, "group", 1)
    scales, shifts = (
        np.repeat(each.reshape(groups, -1), len(weight) // groups, axis=0).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        for each in (scale, shift)
    )
    change(node, 2, lambda old: old + (weight * shifts).reshape(len(weight), -1).sum(axis=1))
    change(node, 1, lambda old: old * scales)


def _is_padded(convolution: ir.Node) -> bool:
    pads = convolution.attributes["pads"].as_ints() if "pads" in convolution.attributes else ()
    automatic = convolution.attributes["auto_pad"].as_string() if "auto_pad" in convolution.attributes else "NOTSET"
    return any(pads) or automatic not in ("NOTSET", "VALID")


def _is_matrix(value: ir.Value) -> bool:
    known = constant_or_none(value)
    return known is not None and known.ndim == 2


def _keeps_constants(resize: ir.Node) -> bool:
    """Whether resizing a constant map gives the same constant: its weights add up to one everywhere."""
    mode = resize.attributes.get("coordinate_transformation_mode")
    return mode is None or mode.as_string() != "tf_crop_and_resize"


def _bias_index(add: ir.Node, axis: int) -> int | None:
    """Which of an Add's inputs is a constant vector along `axis`, which must be the last; None when neither is."""
    if axis != len(add.outputs[0].shape) - 1:
        return None
    vectors = [
        index for index, value in enumerate(add.inputs) if (known := constant_or_none(value)) is not None and known.ndim == 1
    ]
    return vectors[0] if len(vectors) == 1 else None


def _along(axis: int, values: Vector, rank: int) -> Array:
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def _permutation(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints())
