"""Networks in the same ONNX files, run by OpenVINO: the faster runtime on Intel CPUs, in float32 or, where one asks for it, bfloat16."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends.signature import INPUT, PRECISION, Port, check_signature, no_model, not_run
from cmunext.metadata import Metadata

try:
    import openvino
    from openvino.frontend import FrontEndManager

    from cmunext.inference.backends.openvino_graph import split_grouped_convolutions
except ModuleNotFoundError as error:
    raise UsageError("this backend needs OpenVINO; install cmunext[openvino], or choose --backend onnxruntime") from error

HINTS = {"float32": "f32", "bfloat16": "bf16"}
FRAMEWORK = "framework"  # where OpenVINO keeps the metadata_props of an ONNX model


@dataclass(frozen=True)
class OpenVinoBackend:
    """A model of OpenVINO on the CPU; see `Backend`.

    It is compiled for single images of one size, which runs faster than for any size, when that size is first met. The images of
    a batch run side by side in `streams` streams, so a batch gives exactly what its images give one by one.
    """

    core: Any
    model: Any
    metadata: Metadata
    precision: str
    settings: Mapping[str, Any]
    streams: int
    name: str = "openvino"
    _queues: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # a queue has one callback

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w. Raises InputError where the network does not take it."""
        try:
            with self._lock:
                return self._run(batch)
        except RuntimeError as error:  # what OpenVINO raises
            raise not_run(batch.shape, error) from error

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = (1, *batch.shape[1:])
        queue = self._queues.get(shape) or self._queues.setdefault(shape, self._compile(shape))
        logits: list[Any] = [None] * len(batch)

        def keep(request: Any, index: int) -> None:
            logits[index] = request.get_output_tensor().data.copy()  # the request's memory is used again

        queue.set_callback(keep)
        for index in range(len(batch)):
            queue.start_async({INPUT: batch[index : index + 1]}, index)
        queue.wait_all()
        return np.concatenate(logits)

    @property
    def preferred_batch(self) -> int:
        """Images that are best given to it at a time: one for each stream."""
        return self.streams

    def _compile(self, shape: tuple[int, ...]) -> Any:
        model = self.model.clone()
        model.reshape({INPUT: shape})
        split_grouped_convolutions(model)
        compiled = self.core.compile_model(model, "CPU", dict(self.settings))
        hint = self.settings["INFERENCE_PRECISION_HINT"]
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:
            raise InputError(f"OpenVINO computes in {used} where {hint} was asked for; choose --backend onnxruntime")
        return openvino.AsyncInferQueue(compiled, self.streams)


def load(
    path: Path,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    streams: int | None = None,
) -> OpenVinoBackend:
    """Open an .onnx file that describes itself.

    Parameters
    ----------
    precision : "float32" (also where it is None) or "bfloat16". OpenVINO would take bfloat16 by itself where the CPU multiplies it.
    streams : images that run at the same time, each on its share of the threads; None means one.

    Raises
    ------
    UsageError : when the device is not the CPU, or the CPU or the file cannot run in this precision.
    InputError : when the file is no ONNX model, was changed after it was written, does not describe itself, or is not what it says.
    """
    if device != "cpu":
        raise UsageError(f"device is {device!r}, and openvino runs on the cpu here; choose --backend onnxruntime, or use the cpu")
    asked, precision, streams = precision, precision or "float32", streams or 1
    core = openvino.Core()
    if precision == "bfloat16" and not runs_bfloat16(core):
        raise UsageError("precision is 'bfloat16', which this CPU does not compute in; use float32")
    try:  # by the reader for ONNX: `core.read_model` tries every format that it knows, and all of them complain
        reader = FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(path)))
    except Exception as error:  # its errors have no common base
        reason = " ".join(str(error).split())[-160:]
        raise no_model(path, reason) from error
    properties = _properties(model)
    metadata = Metadata.from_properties(properties, str(path))
    ports = {name: _port(port) for port in (*model.inputs, *model.outputs) for name in sorted(port.get_names())[:1]}
    check_signature(ports, metadata, path)
    if not all(map(_is_finite, model.get_ops())):  # which its ReLU would hide
        raise InputError(f"{path}: the network has weights that are not finite numbers; export it again")
    stated = properties.get(PRECISION, "float32")
    if stated != "float32" and asked is not None:
        raise UsageError(f"{path}: it computes in {stated}, not in {asked}; leave --precision out, or give float32 weights")
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": threads or 0,  # 0: one a core
        "ENABLE_CPU_PINNING": False,  # two processes with a thread each would meet on the first core
    }
    return OpenVinoBackend(core, model, metadata, precision if stated == "float32" else stated, settings, streams)


def runs_bfloat16(core: Any = None) -> bool:
    """Whether this machine's CPU computes in bfloat16."""
    return "BF16" in (core or openvino.Core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _properties(model: Any) -> dict[str, str]:
    if not model.has_rt_info(FRAMEWORK):
        return {}
    return {name: str(value) for name, value in model.get_rt_info(FRAMEWORK).value.items()}


def _is_finite(operator: Any) -> bool:
    constant = operator.get_type_name() == "Constant" and operator.get_element_type().is_real()
    return not constant or bool(np.isfinite(operator.data).all())


def _port(port: Any) -> Port:
    kind = port.get_element_type()
    shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
    return Port(kind.get_type_name(), kind == openvino.Type.f32, shape)
