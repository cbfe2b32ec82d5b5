"""Weights -> one self-describing `.onnx`: the same network and the same metadata, for running without torch.

Nothing is written that disagrees: the file is first run beside PyTorch on simulated images, and refused when its logits differ.
"""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cmunext.errors import InputError, UsageError
from cmunext.metadata import KEY
from cmunext.phantom import simulate
from cmunext.storage import replacing
from cmunext.weights import Weights

OPSET = 20  # the first whose GELU is one operator
TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit where that is above 1
IMAGES = 2  # simulated images on which the two are compared


def export(weights: Weights, path: str | os.PathLike[str]) -> float:
    """Write an ONNX file, in one step, with input `image` (N x C x H x W) and output `logits` (N x K x H x W).

    The batch may have any size, and so may the image where the network takes any. The metadata stands in `metadata_props`.

    Returns
    -------
    The largest difference between its logits and PyTorch's over the images that were compared, relative as in `TOLERANCE`.

    Raises
    ------
    UsageError : `path` does not end in .onnx.
    InputError : the file disagrees with PyTorch; nothing is written then.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path} must end in .onnx")
    preprocessing = weights.preprocessing
    images = np.concatenate(
        [preprocessing.to_input(simulate(seed, preprocessing.height, preprocessing.width)[0]) for seed in range(IMAGES)]
    )
    with replacing(path) as temporary:
        _write(weights, images, temporary)
        difference = _difference(weights.network, images, temporary)
        if not difference <= TOLERANCE:
            raise InputError(
                f"the exported network differs from PyTorch by {difference:.2g}, above {TOLERANCE:g}; it was not written"
            )
    return difference


def _write(weights: Weights, images: NDArray[np.float32], path: Path) -> None:
    divisor = getattr(weights.network, "size_divisor", None)
    sizes = {2: divisor * torch.export.Dim("rows"), 3: divisor * torch.export.Dim("columns")} if divisor else {}
    program = torch.onnx.export(
        weights.network.eval(),
        (torch.from_numpy(images),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch"), **sizes},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props[KEY] = weights.metadata.to_json()
    program.save(path, external_data=False)


def _difference(network: nn.Module, images: NDArray[np.float32], path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    (logits,) = session.run(None, {"image": images})
    return float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))
