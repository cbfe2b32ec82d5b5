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
from cmunext.inference.backends.signature import PRECISION, Port, check_signature
from cmunext.inference.native.library import load_library
from cmunext.metadata import Metadata

try:
    import onnx

    from cmunext.inference.native.program import build
except ModuleNotFoundError as error:
    raise UsageError("this backend needs the package onnx; install cmunext[native], or choose --backend onnxruntime") from error


@dataclass(frozen=True)
class NativeBackend:
    """A network of the native library on the CPU; see `Backend`. Images of a batch run one after the other, each on all `threads`."""

    metadata: Metadata
    precision: str
    divisor: int
    _library: ctypes.CDLL = field(repr=False)
    _network: int = field(repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    name: str = "native"
    preferred_batch: int = 1

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w. Raises InputError where the size does not fit, or memory."""
        count, channels, height, width = batch.shape
        if channels != self.metadata.in_channels or height % self.divisor or width % self.divisor:
            raise InputError(
                f"input of {channels} x {height} x {width} does not fit: it must have {self.metadata.in_channels} channels, and height "
                f"and width must divide by {self.divisor}"
            )
        images = np.ascontiguousarray(batch, np.float32)
        logits = np.empty((count, self.metadata.num_classes, height, width), np.float32)
        with self._lock:
            for image, result in zip(images, logits, strict=True):
                if self._library.cmunext_run(self._network, image.ctypes.data, height, width, result.ctypes.data):
                    raise InputError(
                        f"there is not enough memory for an image of {height} x {width}; free some, or use a smaller size"
                    )
        return logits

    def __del__(self) -> None:
        self._library.cmunext_close(self._network)


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
        raise InputError(f"{path}: it cannot be opened as an ONNX model ({reason}); copy or export it again") from error
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
    network = library.cmunext_open(
        program.integers.ctypes.data, program.numbers.ctypes.data, threads or os.cpu_count() or 1, precision == "bfloat16"
    )
    if not network:
        raise InputError(f"{path}: there is not enough memory for this network; free some")
    return NativeBackend(metadata, precision, 2**program.levels, library, network)


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    return Port(onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), tensor.elem_type == onnx.TensorProto.FLOAT, shape)
