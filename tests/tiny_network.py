"""A network of one convolution in an .onnx file that describes itself: finds what is darker than its surroundings. No torch."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import KEY, Metadata

DARK = Preprocessing(height=64, width=64, mean=(0.5,) * 3, std=(0.5,) * 3)


def describe(preprocessing: Preprocessing = DARK, classes: tuple[str, ...] = ("lesion",)) -> Metadata:
    """The metadata of the network."""
    return Metadata("tiny", {"in_channels": preprocessing.in_channels, "num_classes": len(classes)}, preprocessing, classes)


def write_network(
    path: Path,
    metadata: Metadata | None = None,
    properties: dict[str, str] | None = None,
    gain: float = -20.0,
    names: tuple[str, str] = ("image", "logits"),
) -> Path:
    """Write the network: logits of class k = gain * (mean over channels) - 10 + k; class 0 is where an input lies below -0.5.

    `properties` replaces the file's metadata; `names` are those of input and output.
    """
    metadata = metadata or describe()
    channels, classes = metadata.in_channels, metadata.num_classes
    weight = np.full((classes, channels, 1, 1), gain / channels, np.float32)
    bias = np.arange(classes, dtype=np.float32) - 10
    graph = helper.make_graph(
        [helper.make_node("Conv", [names[0], "weight", "bias"], [names[1]])],
        "tiny",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["batch", classes, "height", "width"])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    helper.set_model_props(model, {KEY: metadata.to_json()} if properties is None else properties)
    onnx.save(model, path)
    return path


def dark_discs(size: tuple[int, int] = (120, 160), discs: tuple[tuple[int, int, int], ...] = ((50, 60, 20),)) -> np.ndarray:
    """A grey image, uint8, of level 160 with discs (x, y, radius) of level 20."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.full(size, 160, np.uint8)
    for centre_x, centre_y, radius in discs:
        image[(x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2] = 20
    return image
