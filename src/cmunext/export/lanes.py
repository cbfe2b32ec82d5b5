"""A layout for processors whose vectors hold 16 numbers (AVX-512, AMX): layers of fewer channels are padded with channels of zeros.

Runtimes keep 16 channels side by side there. A layer of 8 is padded each time it is computed and unpadded when something else reads it,
or left to slower kernels. In CMUNeXt-S that concerns the full resolution. Padding once, in the weights, keeps the whole
network in one layout. It is exact: a padded channel is zero everywhere (convolution, norm, GELU, ReLU, pooling and resizing all take zero
to zero, with the bias and shift of that channel zero too), and nothing reads it but zeros.

Two more things follow from free channels. A grouped convolution of narrow groups becomes a dense one with zeros between its groups.
And where two narrow ReLU maps are concatenated, they are laid on different channels and added: relu(x + skip) is the concatenation
when each channel of x or of skip is zero and skip is not negative; runtimes add within the convolution that makes x.

On processors with narrower vectors the padding costs time instead.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cmunext.export.graph import change, constant, has_constants, integer

LANES = 16
UNARY = ("Relu", "Gelu", "MaxPool", "Resize", "BatchNormalization")  # channel by channel, zero to zero


@dataclass(frozen=True)
class Layout:
    """Where the channels of a padded value lie.

    Attributes
    ----------
    places : for each channel that the value has after padding, the one that it had before, or -1 for zeros.
    roots : the convolutions whose padding made it so.
    """

    places: tuple[int, ...]
    roots: frozenset[ir.Node]


def pad(model: ir.Model) -> int:
    """Pad narrow layers, in place. Returns how many convolutions got more output channels; 0 changes nothing."""
    graph = model.graph
    starts = {node: 0 for node in graph if _is_candidate(node)}
    for node in graph:
        if (second := _second_of_pair(node)) in starts:
            starts[second] = node.inputs[0].shape[1]
    while True:
        layouts: dict[ir.Value, Layout] = {}
        for node in graph:
            if conflict := _propagate(node, starts, layouts):
                break
        else:
            conflict = frozenset().union(*(layouts[value].roots for value in graph.outputs if value in layouts))
        if not conflict:
            break
        for root in conflict:
            del starts[root]
    for node in list(graph):
        _rewrite(node, layouts)
    for value, layout in layouts.items():
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], len(layout.places), *value.shape.dims[2:]])
    return len(starts)
