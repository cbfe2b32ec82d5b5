"""Smaller numbers in an exported graph: weights stored as float16, or a network that computes in INT8."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cmunext.export.samples import Samples
from cmunext.inference.backends.signature import INPUT

# Fewest channels, in (a group) and out, from which a convolution computes in INT8. Below are the depthwise ones, the first and the last, and
# in CMUNeXt-S those of 8 channels: they cost accuracy (agreement of the masks with float32 is 0.98 without them and 0.96 with them, on 128
# images of BUSI), and processors multiply INT8 in groups of 16 channels or more.
NARROW = 16


def halve(model: ir.Model) -> None:
    """Store, in place, every float32 weight of two or more axes as float16. A Cast gives it back to the arithmetic, which stays float32.

    Runtimes carry out the Cast once, when they load the file, so speed and memory are those of float32; the file is half as large.
    Biases and other vectors, a hundredth of the whole, stay as they are.
    """
    graph = model.graph
    largest = np.finfo(np.float16).max
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        values = tensor.numpy()
        if np.abs(values).max(initial=0) > largest:
            continue  # it would become infinite
        half = ir.val(f"{name}.float16", const_value=ir.tensor(values.astype(np.float16), name=f"{name}.float16"))
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name = f"{name}.float32"
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(half)
        graph.insert_before(graph[0], cast)


def narrow_convolutions(model: ir.Model) -> list[str]:
    """The names of the convolutions with fewer than `NARROW` channels in, a group, or out."""
    return [str(node.name) for node in model.graph if node.op_type == "Conv" and min(node.inputs[1].shape[:2]) < NARROW]


def quantize(source: Path, target: Path, samples: Samples, keep: Sequence[str]) -> None:
    """Post-training static quantisation of every convolution but those in `keep` (names of nodes), with onnxruntime's quantiser.

    Weights: signed, one scale an output channel, 7 bits of the 8, because processors without VNNI add pairs of products in 16 bits and
    would overflow. Activations: unsigned, one scale and zero point a tensor, from the least and largest value over `samples`.
    QuantizeLinear and DequantizeLinear stand round each convolution, the form that every runtime reads.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[NDArray[np.float32]] = samples.inputs()

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            found = next(self.inputs, None)
            return None if found is None else {INPUT: found}

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(keep),
    )
