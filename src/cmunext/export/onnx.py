"""Weights -> one self-describing `.onnx`: the same network and the same metadata, for running without torch.

Nothing is written that disagrees: the finished file is run beside PyTorch first (see `parity`), and the report stays in its metadata.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from cmunext import __version__
from cmunext.errors import InputError, UsageError
from cmunext.export import parity
from cmunext.export.fold import fold
from cmunext.export.quantize import halve, narrow_convolutions, quantize
from cmunext.export.samples import Samples, simulated
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends import onnx as runtime
from cmunext.inference.backends.signature import INPUT, OUTPUT, PRECISION
from cmunext.inference.backends.torch import TorchBackend
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import KEY, Metadata
from cmunext.seal import SEAL, sealed
from cmunext.storage import replacing
from cmunext.weights import Weights

OPSET = 20  # the first in which GELU is one operator; onnxruntime 1.17, OpenVINO 2024 and TensorRT 10 read it
PRECISIONS = ("float32", "float16", "int8")


def export(
    weights: Weights,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    samples: Samples | None = None,
) -> parity.Report:
    """Write an ONNX file, in one step, with input `image` (N x C x H x W) and output `logits` (N x K x H x W), both float32.

    Parameters
    ----------
    precision : "float32"; "float16", in which the weights are stored (arithmetic stays float32); or "int8", in which the
        convolutions compute, except the narrow ones (see `quantize.NARROW`).
    size : (height, width) of the one input that the file takes, with a batch of 1. None leaves the batch open, and height and width
        too where the network takes any (multiples of its `size_divisor`).
    samples : real images to compare on, at the size of `preprocessing(weights, size)`; INT8 is calibrated on them as well, and needs
        them. None takes simulated ones.

    Returns
    -------
    How far the file is from PyTorch.

    Raises
    ------
    UsageError : `path` does not end in .onnx, an unknown precision, "int8" without samples, or a size that the network does not take.
    InputError : the file disagrees with PyTorch; nothing is written then.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path} must end in .onnx")
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "int8" and samples is None:
        raise UsageError("int8 needs real images for its calibration; give a dataset (--calibrate DATASET)")
    metadata = replace(weights.metadata, preprocessing=preprocessing_at(weights, size))
    if samples is None:
        samples = simulated(metadata.preprocessing)
    model = to_onnx(weights, metadata.preprocessing, fixed=size is not None)
    folded, kept = fold(model, forward=precision != "int8")
    arithmetic = "int8" if precision == "int8" else "float32"
    with replacing(path) as temporary:
        if precision == "float16":
            halve(model)
        elif precision == "int8":
            model = _quantize(model, metadata, temporary, samples)
        _save(model, metadata, temporary, arithmetic)
        reference = Segmenter(TorchBackend(weights.network, metadata, "cpu"))
        report = parity.compare(
            reference, Segmenter(runtime.load(temporary, as_it_stands=True)), samples, 1 if size else parity.BATCH
        )
        if precision == "float32" and report.max_abs_diff > parity.LOGITS:
            report = replace(report, rounding=parity.rounding(weights.network, samples))
        parity.require(report, precision)
        record = {
            "program": f"cmunext {__version__}",
            "opset": OPSET,
            "weights": precision,
            "norms": {"folded": folded, "kept": kept},
            "parity": report.to_dict(),
        }
        _save(model, replace(metadata, export=record), temporary, arithmetic)
    return report


def preprocessing_at(weights: Weights, size: tuple[int, int] | None) -> Preprocessing:
    """The preprocessing that an export of this (height, width) has; None leaves the size of the weights.

    Raises UsageError when the network does not take that size.
    """
    if size is None:
        return weights.preprocessing
    height, width = size
    try:
        chosen = replace(weights.preprocessing, height=height, width=width)
        with torch.inference_mode():
            weights.network(torch.zeros(1, weights.metadata.in_channels, height, width))
    except InputError as error:
        raise UsageError(f"the size {height} x {width}: {error}") from error
    return chosen


def to_onnx(weights: Weights, preprocessing: Preprocessing, fixed: bool) -> ir.Model:
    """The network as PyTorch's exporter gives it; `fixed` to the size of the preprocessing and a batch of one, or open."""
    network = weights.network.eval()
    image = torch.zeros(1 if fixed else 2, weights.metadata.in_channels, preprocessing.height, preprocessing.width)
    dynamic: dict[int, Any] = {}
    if not fixed:
        dynamic[0] = torch.export.Dim("batch")
        if divisor := getattr(network, "size_divisor", None):
            least = max(1, getattr(network, "minimum_size", 0) // divisor)
            for axis, name in ((2, "rows"), (3, "columns")):
                dynamic[axis] = divisor * torch.export.Dim(name, min=least)
    with _quiet():
        program = torch.onnx.export(
            network,
            (image,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True always gives one
    return program.model


def _quantize(model: ir.Model, metadata: Metadata, path: Path, samples: Samples) -> ir.Model:
    """The INT8 form of a model, its narrow convolutions kept as they are; `path` is used for what stands between."""
    _save(model, metadata, path)
    with _quiet():
        quantize(path, path, samples, narrow_convolutions(model))
    return ir.load(path)


def _save(model: ir.Model, metadata: Metadata, path: Path, precision: str = "float32") -> None:
    ClearMetadataAndDocStringPass()(model)  # PyTorch leaves the exporting machine's paths there
    model.metadata_props.update({KEY: metadata.to_json(), PRECISION: precision, **SEAL})
    ir.save(model, path)
    path.write_bytes(sealed(path.read_bytes(), path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of PyTorch's exporter and onnxruntime's quantiser, which concern packages that we do without."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
