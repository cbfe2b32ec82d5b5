"""A layout for processors whose vectors hold 16 numbers (AVX-512, AMX): layers of fewer channels are padded with channels of zeros.

Runtimes keep 16 channels side by side there. A layer of 8 is padded each time that it is computed, and unpadded when something else reads
it, or is left to slower kernels; in CMUNeXt-S that is the whole of the full resolution. Padding once, in the weights, keeps the network in
one layout. It is exact: a padded channel is zero everywhere, because convolution (its weights and bias are zero), norm (its shift is
zero), GELU, ReLU, pooling and resizing take zero to zero, and whatever reads it multiplies it by zero.

Two more things follow. A convolution of groups narrower than 16 becomes a dense one, with zeros between its groups. And where two narrow
ReLU maps are concatenated they are laid on different channels and added, relu(x + skip), which a runtime does within the convolution
that makes x: on each channel either x or the skip is zero, and the skip is not negative.

On processors with narrower vectors the padding only costs time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from cmunext.export.graph import Array, change, drop_unread, has_constants, integer

LANES = 16
UNARY = ("Relu", "Gelu", "MaxPool", "Resize", "BatchNormalization")  # channel by channel, zero to zero


@dataclass(frozen=True)
class Layout:
    """Where the channels of a padded value lie.

    Attributes
    ----------
    places : for each channel after padding the one that it was before, or -1 for zeros.
    roots : the convolutions whose padding made it so.
    """

    places: tuple[int, ...]
    roots: frozenset[ir.Node]


Layouts = Mapping[ir.Value, Layout]


def pad(model: ir.Model) -> int:
    """Pad narrow layers, in place. Returns how many convolutions have more output channels than before."""
    graph = model.graph
    starts = {node: 0 for node in graph if _is_candidate(node)}  # convolution -> the channel where its own begin
    for node in graph:
        pair = _addable_pair(node)
        if pair and pair[1] in starts:
            starts[pair[1]] = node.inputs[0].shape[1]
    while conflict := _conflict(graph, starts)[0]:
        starts = {node: start for node, start in starts.items() if node not in conflict}
    layouts = _conflict(graph, starts)[1]
    for node in list(graph):
        _rewrite(node, layouts)
    for value, layout in layouts.items():
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], len(layout.places), *value.shape.dims[2:]])
    drop_unread(graph)
    return len(starts)


def _is_candidate(node: ir.Node) -> bool:
    """A convolution of fewer than 16 output channels, unless only dense spatial convolutions read them: these read 8 faster than 16."""
    if node.op_type != "Conv" or _is_depthwise(node) or not has_constants(node) or node.inputs[1].shape[0] >= LANES:
        return False
    return not all(
        reader.op_type == "Conv" and not _is_depthwise(reader) and max(reader.inputs[1].shape[2:]) > 1
        for reader in _readers(node.outputs[0])
    )


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads a value, or what becomes of it channel by channel."""
    found = []
    for node, _ in value.uses():
        found += _readers(node.outputs[0]) if node.op_type in UNARY else [node]
    return found


def _addable_pair(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Of a concatenation of two ReLU maps of at most 16 channels together: the first ReLU, and the convolution whose ReLU is the second."""
    if node.op_type != "Concat" or integer(node, "axis", 0) != 1 or len(node.inputs) != 2:
        return None
    first, second = (value.producer() for value in node.inputs)
    widths = [value.shape[1] for value in node.inputs]
    if not (first and second and first.op_type == second.op_type == "Relu" and all(isinstance(width, int) for width in widths)):
        return None
    source = second.inputs[0]
    convolution = source.producer()
    alone = len(source.uses()) == len(second.outputs[0].uses()) == 1
    if convolution is None or convolution.op_type != "Conv" or not alone or sum(widths) > LANES:
        return None
    return first, convolution


def _conflict(graph: ir.Graph, starts: Mapping[ir.Node, int]) -> tuple[frozenset[ir.Node], dict[ir.Value, Layout]]:
    """Lay out every value that follows from padding `starts`; or the convolutions that cannot be padded after all."""
    layouts: dict[ir.Value, Layout] = {}
    for node in graph:
        read = [layouts[value] for value in node.inputs if value in layouts]
        if node in starts:
            channels = node.inputs[1].shape[0]
            places = [-1] * starts[node] + list(range(channels))
            layouts[node.outputs[0]] = Layout((*places, *[-1] * (-len(places) % LANES)), frozenset([node]))
        elif read:
            layout = _follow(node, read, layouts)
            if layout is None:
                return frozenset().union(*(each.roots for each in read)), {}
            if layout.places:
                layouts[node.outputs[0]] = layout
    shown = [layouts[value].roots for value in graph.outputs if value in layouts]
    return frozenset().union(*shown), layouts


def _follow(node: ir.Node, read: list[Layout], layouts: Layouts) -> Layout | None:
    """The layout of what a reader of padded values gives; without places where it is as before, None where the reader knows no padding."""
    roots = frozenset().union(*(each.roots for each in read))
    match node.op_type:
        case "Conv" if node.inputs[0] in layouts and has_constants(node):
            return read[0] if _is_depthwise(node) else Layout((), roots)
        case "Relu" | "Gelu" | "MaxPool":
            return read[0]
        case "Resize" | "BatchNormalization" if node.inputs[0] in layouts and has_constants(node):
            return read[0]
        case "Add" if len(read) == 2 and read[0].places == read[1].places:
            return Layout(read[0].places, roots)
        case "Concat" if integer(node, "axis", 0) == 1:
            parts = [layouts[value].places if value in layouts else tuple(range(value.shape[1])) for value in node.inputs]
            widths = [max(part) + 1 for part in parts]
            moved = [
                tuple(place + sum(widths[:index]) if place >= 0 else -1 for place in part) for index, part in enumerate(parts)
            ]
            if _is_sum(node, layouts):
                return Layout(tuple(np.maximum(*moved).tolist()), roots)
            return Layout(sum(moved, ()), roots)
    return None


def _is_sum(concat: ir.Node, layouts: Layouts) -> bool:
    """Whether the two maps lie on different channels of 16, and so can be added."""
    if _addable_pair(concat) is None or not all(value in layouts for value in concat.inputs):
        return False
    first, second = (np.array(layouts[value].places) for value in concat.inputs)
    return len(first) == len(second) and not ((first >= 0) & (second >= 0)).any()


def _rewrite(node: ir.Node, layouts: Layouts) -> None:
    match node.op_type:
        case "Conv":
            _rewrite_convolution(node, layouts)
        case "BatchNormalization" if node.inputs[0] in layouts:
            places = layouts[node.inputs[0]].places
            for index, filling in ((1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0)):
                change(node, index, lambda old, filling=filling: _spread(old, places, filling))
        case "Concat" if _is_sum(node, layouts):
            relu = node.inputs[1].producer()
            total = ir.node("Add", [relu.inputs[0], node.inputs[0]])
            total.outputs[0].name = f"{node.outputs[0].name}.sum"
            relu.prepend(total)
            relu.replace_input_with(0, total.outputs[0])
            node.outputs[0].replace_all_uses_with(relu.outputs[0])
            node.graph.remove(node, safe=True)


def _rewrite_convolution(node: ir.Node, layouts: Layouts) -> None:
    before, after = layouts.get(node.inputs[0]), layouts.get(node.outputs[0])
    outs, ins = node.inputs[1].shape[:2]
    if before is None and after is None:
        return
    if _is_depthwise(node):
        node.attributes["group"] = ir.AttrInt64("group", len(before.places))
    else:
        groups = integer(node, "group", 1)
        change(node, 1, lambda old: _dense(old, groups))
        node.attributes["group"] = ir.AttrInt64("group", 1)
        if before is not None:
            change(node, 1, lambda old: _spread(old.swapaxes(0, 1), before.places).swapaxes(0, 1))
    if after is not None:
        change(node, 2, lambda old: _spread(old, after.places))
        change(node, 1, lambda old: _spread(old, after.places))


def _dense(weight: Array, groups: int) -> Array:
    """The weight of a grouped convolution as that of a dense one."""
    outs, ins = len(weight) // groups, weight.shape[1]
    dense = np.zeros((len(weight), groups * ins, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * outs, (group + 1) * outs)
        dense[rows, group * ins : (group + 1) * ins] = weight[rows]
    return dense


def _spread(values: Array, places: tuple[int, ...], filling: float = 0.0) -> Array:
    """Rows in their places, the others filled."""
    spread = np.full((len(places), *values.shape[1:]), filling)
    for row, place in enumerate(places):
        if place >= 0:
            spread[row] = values[place]
    return spread


def _is_depthwise(node: ir.Node) -> bool:
    groups = integer(node, "group", 1)
    return groups > 1 and groups == node.inputs[1].shape[0] and node.inputs[1].shape[1] == 1
