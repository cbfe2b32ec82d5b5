"""CMUNeXt in .onnx files, run by our own C++ on CPUs: the fastest that we know, where a compiler is at hand. See `cmunext.inference.native`."""

import ctypes
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends.signature import PRECISION, Port, check_signature, no_model
from cmunext.inference.native.library import load_library
from cmunext.metadata import Metadata
from cmunext.processor import cores

try:
    import onnx

    from cmunext.inference.native.program import Program, build
except ModuleNotFoundError as error:
    raise UsageError("this backend needs the package onnx; install cmunext[native], or choose --backend onnxruntime") from error


class _Network:
    """A network in the library's memory, which goes with this object. A forked child has no part in it: its threads are not there."""

    def __init__(self, library: ctypes.CDLL, program: Program, threads: int, precision: str):
        pointers = program.integers.ctypes.data, program.numbers.ctypes.data
        self._address = library.cmunext_open(*pointers, threads, precision == "bfloat16")
        self._library, self._process, self._lock = library, os.getpid(), threading.Lock()
        if not self._address:
            raise MemoryError

    def run(self, image: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """float32 C x h x w -> float32 K x h x w, both in one piece."""
        with self._lock:
            failed = self._library.cmunext_run(self._address, image.ctypes.data, *image.shape[1:], logits.ctypes.data)
        if failed:
            raise MemoryError

    def __del__(self) -> None:
        if self._address and os.getpid() == self._process:
            self._library.cmunext_close(self._address)


@dataclass(frozen=True)
class NativeBackend:
    """A network of the native library on the CPU; see `Backend`. Images of a batch run one after the other, each on all `threads`."""

    metadata: Metadata
    precision: str
    divisor: int
    _network: _Network = field(repr=False)
    name: str = "native"
    preferred_batch: int = 1

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w. Raises InputError where the size does not fit, or memory."""
        count, channels, height, width = batch.shape
        fits = all(side and side % self.divisor == 0 for side in (height, width))
        if channels != self.metadata.in_channels or not fits:
            raise InputError(
                f"input of {channels} x {height} x {width} does not fit: it must have {self.metadata.in_channels} channels, and height "
                f"and width must divide by {self.divisor}"
            )
        images = np.ascontiguousarray(batch, np.float32)
        logits = np.empty((count, self.metadata.num_classes, height, width), np.float32)
        try:
            for image, result in zip(images, logits, strict=True):
                self._network.run(image, result)
        except MemoryError as error:
            raise InputError(
                f"there is not enough memory for an image of {height} x {width}; free some, or use a smaller size"
            ) from error
        return logits


def load(
    path: Path,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    streams: int | None = None,
) -> NativeBackend:
    """Open an .onnx file of CMUNeXt that describes itself. The first time on a machine the library is built, which takes seconds.

    Parameters
    ----------
    precision : "float32" (also where it is None), or "bfloat16": weights and what is kept between layers, with sums in float32.

    Raises
    ------
    UsageError : when there is no compiler, the device is not the CPU, or the CPU does not compute in this precision.
    InputError : when the file is no ONNX model, does not describe itself, is not what it says, or holds another network than CMUNeXt.
    """
    if device != "cpu":
        raise UsageError(f"device is {device!r}, and native runs on the cpu; choose --backend onnxruntime, or use the cpu")
    if streams not in (None, 1):
        raise UsageError(f"streams is {streams}, and native has one; choose --backend openvino, or leave --streams out")
    return open_network(path, load_library(), threads, precision or "float32")


def open_network(path: Path, library: ctypes.CDLL, threads: int | None, precision: str) -> NativeBackend:
    """The same with a library of one's choice; raises as `load`."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise no_model(path, reason) from error
    properties = {each.key: each.value for each in model.metadata_props}
    metadata = Metadata.from_properties(properties, str(path))
    check_signature({each.name: _port(each) for each in (*model.graph.input, *model.graph.output)}, metadata, path)
    stated = properties.get(PRECISION, "float32")
    if stated != "float32":
        raise UsageError(
            f"{path}: it computes in {stated}, which native does not; choose --backend onnxruntime, or give float32 weights"
        )
    if precision == "bfloat16" and not library.cmunext_bfloat16():
        raise UsageError("precision is 'bfloat16', which native computes in on CPUs with AVX-512 BF16 only; use float32")
    program = build(model, str(path))
    if (program.in_channels, program.num_classes) != (metadata.in_channels, metadata.num_classes):
        raise InputError(
            f"{path}: the network takes {program.in_channels} channels and gives {program.num_classes} classes, and its metadata promises "
            f"{metadata.in_channels} and {metadata.num_classes}; export the weights again"
        )
    try:
        network = _Network(library, program, threads or cores(), precision)
    except MemoryError as error:
        raise InputError(f"{path}: there is not enough memory for this network; free some") from error
    return NativeBackend(metadata, precision, 2**program.levels, network)


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    return Port(onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), tensor.elem_type == onnx.TensorProto.FLOAT, shape)
