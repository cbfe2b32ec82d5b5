"""An exported CMUNeXt as the steps of engine.cpp: what runs together, between which feature maps, and the numbers of its layers.

A program is two arrays. `integers` tells the maps (channels and level of each: a map of level n has 1 / 2^n of the image's sides; the first is
the image) and then the steps:

    pass        0, is the first layer depthwise, residual around it, target map (-1: the logits), sources, layers
                ... of a depthwise layer: channels, kernel; of a dense one: inputs, outputs, groups, kernel; then what follows it
    pooling     1, source, target: the largest of 2 x 2
    upsampling  2, source, target, inputs, outputs, what follows: bilinear by two, and a 3 x 3 convolution

What follows a convolution is its activation (none, ReLU, GELU) and whether a scale and a shift of each output come behind that. `numbers` has
for each layer its weights (outputs x inputs of a group x rows x columns), biases and, where there are any, scales and shifts. A pass has one
source for each group of its first layer: what Skip-Fusion puts side by side is read from where it lies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from cmunext.errors import InputError
from cmunext.inference.onnx_reading import Reading, attributes

CHANNELS = 8  # what every map but the image's has a multiple of
LARGEST_KERNEL = 15

HALVES = {"strides": [2, 2], "kernel_shape": [2, 2], "pads": [0] * 4, "dilations": [1, 1], "auto_pad": b"NOTSET", "ceil_mode": 0}

PASS, POOLING, UPSAMPLING = range(3)
ACTIVATIONS = {"Relu": 1, "Gelu": 2}
TO_LOGITS = -1


@dataclass(frozen=True)
class Program:
    """What engine.cpp reads, and what must be known to call it: `levels`, how often the image is halved, and the channels of both ends."""

    integers: NDArray[np.int32]
    numbers: NDArray[np.float32]
    levels: int
    in_channels: int
    num_classes: int


@dataclass
class _Layer:
    """A convolution and what follows it; `result` is the name of what comes out."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int
    activation: int
    affine: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    residual: bool
    result: str

    @property
    def outputs(self) -> int:
        return len(self.weights)

    @property
    def is_depthwise(self) -> bool:
        return self.weights.shape[1] == 1 and self.groups == len(self.weights) > 1

    @property
    def is_pointwise(self) -> bool:
        return self.weights.shape[2:] == (1, 1) and self.groups == 1

    def shape(self) -> list[int]:
        outputs, inputs, kernel, _ = self.weights.shape
        return [outputs, kernel] if self.is_depthwise else [inputs * self.groups, outputs, self.groups, kernel]

    def follower(self) -> list[int]:
        return [self.activation, int(self.affine is not None)]

    def numbers(self) -> list[NDArray[np.float32]]:
        return [self.weights, self.bias, *(self.affine or ())]


@dataclass
class _Steps:
    """What is written so far; `maps` holds (channels, level), `place` the number of the map that a value lies in."""

    maps: list[tuple[int, int]]
    place: dict[str, int]
    steps: list[list[int]] = field(default_factory=list)
    numbers: list[NDArray[np.float32]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)  # of a value that is others side by side
    small: dict[str, str] = field(default_factory=dict)  # what a value is the upsampled form of
    classes: int = 0  # of the logits, once they are there

    def add_map(self, value: str, channels: int, level: int) -> int:
        if channels % CHANNELS:
            raise _Unfit(f"a feature map of {channels} channels, no multiple of {CHANNELS}")
        self.maps.append((channels, level))
        self.place[value] = len(self.maps) - 1
        return self.place[value]


class _Unfit(Exception):
    """The network holds what the engine does not run."""


def build(model: onnx.ModelProto, name: str) -> Program:
    """The program of a network that was exported by `cmunext export`, as float32 or float16.

    Raises InputError, which begins with `name`, when it is not made of what CMUNeXt is made of.
    """
    try:
        return _build(model.graph)
    except _Unfit as problem:
        raise InputError(
            f"{name}: the native backend runs CMUNeXt, and this network has {problem}; choose --backend onnxruntime"
        ) from problem
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # no file of ours leads there
        raise InputError(
            f"{name}: the network in this file is damaged ({' '.join(str(error).split())[:160]}); export it again"
        ) from error


def _build(graph: onnx.GraphProto) -> Program:
    reading = _Graph(graph)
    image = graph.input[0]
    channels = image.type.tensor_type.shape.dim[1].dim_value
    steps = _Steps([(channels, 0)], {image.name: 0})
    for node in reading.unread():
        _read(node, reading, steps)
    if not steps.classes:
        raise _Unfit("an output that is not the last convolution's")
    maps = [number for each in steps.maps for number in each]
    integers = [len(steps.maps), *maps, len(steps.steps), *(number for step in steps.steps for number in step)]
    numbers = np.concatenate([part.ravel() for part in steps.numbers])
    if not np.isfinite(numbers).all():
        raise _Unfit("weights that are not finite numbers")
    levels = max(level for _, level in steps.maps)
    return Program(np.array(integers, np.int32), numbers, levels, channels, steps.classes)


def _read(node: onnx.NodeProto, graph: "_Graph", steps: _Steps) -> None:
    if not node.input:
        raise _Unfit(f"an operator {node.op_type} without an input")
    kind, source, result = node.op_type, node.input[0], node.output[0]
    if kind == "Conv":
        layer = graph.layer(node)
        if source in steps.small:
            _add_upsampling(layer, steps.small[source], steps)
        else:
            _add_pass(layer, steps.parts.get(source, [source]), graph, steps)
    elif kind == "MaxPool" and graph.options(node, **HALVES):
        channels, level = steps.maps[_place(source, steps)]
        steps.steps.append([POOLING, _place(source, steps), steps.add_map(result, channels, level + 1)])
    elif graph.doubles(node):
        steps.small[result] = source
    elif kind == "Concat" and graph.options(node, axis=1):
        steps.parts[result] = list(node.input)
    else:
        raise _Unfit(f"an operator {kind} where CMUNeXt has none such")


def _add_pass(layer: _Layer, sources: Sequence[str], graph: "_Graph", steps: _Steps) -> None:
    """A convolution, and the 1 x 1 convolutions that alone read what it gives."""
    if len(sources) != (1 if layer.is_depthwise else layer.groups):
        raise _Unfit(f"a convolution of {layer.groups} groups that reads {len(sources)} feature maps")
    places = [_place(source, steps) for source in sources]
    level = steps.maps[places[0]][1]
    seen = layer.outputs if layer.is_depthwise else layer.weights.shape[1]
    if any(steps.maps[place] != (seen, level) for place in places):
        raise _Unfit("a convolution that does not fit the feature maps which it reads")
    layers = [layer]
    while (behind := graph.only_reader(layers[-1].result)) is not None and behind.op_type == "Conv":
        following = graph.layer(behind, peek=True)
        if not following.is_pointwise or following.residual:
            break
        if following.weights.shape[1] != layers[-1].outputs:
            raise _Unfit("a convolution that does not fit the one before it")
        layers.append(graph.layer(behind))
    if layer.residual and not layer.is_depthwise:
        raise _Unfit("a sum that is not around a depthwise convolution")
    last = layers[-1]
    is_last = last.result == graph.output
    if is_last and (steps.classes or level or last.is_depthwise or last.groups > 1):
        raise _Unfit("logits that are not those of a convolution at the image's own size")
    for each in layers[:-1] if is_last else layers:
        if each.outputs // (1 if each.is_depthwise else each.groups) % CHANNELS:
            raise _Unfit(f"a layer of {each.outputs} channels, no multiple of {CHANNELS} a group")
    if is_last:
        steps.classes = last.outputs
    target = TO_LOGITS if is_last else steps.add_map(last.result, last.outputs, level)
    head = [PASS, int(layer.is_depthwise), int(layer.residual), target, len(places), *places, len(layers)]
    steps.steps.append(head + [number for each in layers for number in (*each.shape(), *each.follower())])
    steps.numbers += [part for each in layers for part in each.numbers()]


def _add_upsampling(layer: _Layer, source: str, steps: _Steps) -> None:
    outputs, inputs, *kernel = layer.weights.shape
    channels, level = steps.maps[_place(source, steps)]
    if level < 1 or kernel != [3, 3] or layer.groups != 1 or inputs != channels or layer.residual:
        raise _Unfit("upsampling beyond the image's size, or something other than a 3 x 3 convolution behind it")
    target = steps.add_map(layer.result, outputs, level - 1)
    steps.steps.append([UPSAMPLING, _place(source, steps), target, inputs, outputs, *layer.follower()])
    steps.numbers += layer.numbers()


def _place(value: str, steps: _Steps) -> int:
    if value not in steps.place:
        raise _Unfit("an order of layers that CMUNeXt has not")
    return steps.place[value]


class _Graph(Reading):
    """The nodes of a model in order, each read once."""

    def __init__(self, graph: onnx.GraphProto):
        super().__init__(graph)
        self._read: set[str] = set()  # nodes, by what they give

    def unread(self) -> Iterator[onnx.NodeProto]:
        """The nodes in order, without those that were read as part of another."""
        for node in self.nodes:
            if node.output[0] not in self._read:
                yield node

    def layer(self, node: onnx.NodeProto, peek: bool = False) -> _Layer:
        """A convolution with what follows it; the nodes count as read then, unless one only wants to `peek`."""
        if len(node.input) < 2 or any(value not in self.constants for value in node.input[1:]):
            raise _Unfit("a convolution whose weights are not constants")
        weights = self.constants[node.input[1]].astype(np.float32)
        kernel = weights.shape[2] if weights.ndim == 4 else 0
        square = weights.ndim == 4 and kernel == weights.shape[3] and kernel % 2 == 1 and kernel <= LARGEST_KERNEL
        if not square or not self.options(node, strides=[1, 1], dilations=[1, 1], pads=[kernel // 2] * 4, auto_pad=b"NOTSET"):
            raise _Unfit("a convolution that is not square, odd and padded to keep its size")
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weights))
        nodes, activation, affine, residual = [node], 0, None, False
        if (reader := self.only_reader(nodes[-1].output[0])) is not None and reader.op_type in ACTIVATIONS:
            if reader.op_type == "Gelu" and not self.options(reader, approximate=b"none"):
                raise _Unfit("a GELU that is not the exact one")
            activation = ACTIVATIONS[reader.op_type]
            nodes.append(reader)
        if (reader := self.only_reader(nodes[-1].output[0])) is not None and reader.op_type == "BatchNormalization":
            affine = self._scale_and_shift(reader)
            nodes.append(reader)
        if (
            (reader := self.only_reader(nodes[-1].output[0])) is not None
            and reader.op_type == "Add"
            and node.input[0] in reader.input
        ):
            residual = True
            nodes.append(reader)
        if not peek:
            self._read.update(each.output[0] for each in nodes)
        groups = attributes(node)["group"]
        if len(weights) % groups or any(part.shape != (len(weights),) for part in (bias, *(affine or ()))):
            raise _Unfit("a convolution whose parts do not fit each other")
        return _Layer(weights, bias.astype(np.float32), groups, activation, affine, residual, nodes[-1].output[0])

    def _scale_and_shift(self, norm: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if any(name not in self.constants for name in norm.input[1:]) or attributes(norm)["training_mode"]:
            raise _Unfit("a normalisation by other numbers than constants")
        gain, offset, mean, variance = (self.constants[name].astype(np.float64) for name in norm.input[1:])
        scale = gain / np.sqrt(variance + attributes(norm)["epsilon"])
        return scale.astype(np.float32), (offset - mean * scale).astype(np.float32)
