"""Networks in ONNX files, run by ONNX Runtime: neither training nor PyTorch is needed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends import GPU_BATCH
from cmunext.inference.backends.signature import INPUT, OUTPUT, PRECISION, Port, check_signature, no_model, not_run
from cmunext.metadata import Metadata

Provider = tuple[str, Mapping[str, str]]
CPU: Provider = ("CPUExecutionProvider", {})
CUDA: Provider = ("CUDAExecutionProvider", {"use_tf32": "0"})  # its default would round float32 products to 10 bits

# device -> the execution providers that ONNX Runtime may use, the wanted one first; what that cannot run goes to the next
PROVIDERS: Mapping[str, Sequence[Provider]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (("TensorrtExecutionProvider", {}), CUDA, CPU),
    "coreml": (("CoreMLExecutionProvider", {"ModelFormat": "MLProgram"}), CPU),  # the older format computes in float16
    "directml": (("DmlExecutionProvider", {}), CPU),
}
# Bytes of a file whose graph is worth rewriting: smaller networks gain less in an image or two than reading the graph takes, and for larger
# ones several copies of the weights at once are too much memory (U-Net, 138 MB: 1.5 GB, 4 s to open, a third less time an image).
WORTH_REWRITING = range(4 << 20, 64 << 20)
PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu and TensorRT", "directml": "onnxruntime-directml"}


@dataclass(frozen=True)
class OnnxBackend:
    """A session of ONNX Runtime; see `Backend`."""

    session: onnxruntime.InferenceSession
    metadata: Metadata
    precision: str
    preferred_batch: int = 1
    name: str = "onnxruntime"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w. Raises InputError where the network does not take it."""
        size = self.session.get_inputs()[0].shape[0]
        if not isinstance(size, int) or size == len(batch):
            return self._run(batch)
        parts = np.split(batch, range(size, len(batch), size))  # the file was exported for batches of one size
        return np.concatenate([self._run(part) for part in parts])

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self.session.run([OUTPUT], {INPUT: batch})[0]
        except Exception as error:  # ONNX Runtime's own errors have no common base
            raise not_run(batch.shape, error) from error


def load(
    path: Path,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    streams: int | None = None,
    as_it_stands: bool = False,
) -> OnnxBackend:
    """Open an .onnx file that describes itself.

    Parameters
    ----------
    as_it_stands : run the very graph of the file. Otherwise, on a CPU, that of a large network is rewritten first (`onnx_upsampling`,
        `onnx_winograd`), where the package onnx is there.

    Raises
    ------
    UsageError : when this ONNX Runtime has no support for the device, or is asked for bfloat16 or streams, which it has not.
    InputError : when the file is no ONNX model, does not describe itself, or is not what it says.
    """
    if precision == "bfloat16":
        raise UsageError("onnxruntime computes in float32, not in bfloat16; choose --backend openvino, or leave --precision out")
    if streams not in (None, 1):
        raise UsageError(f"streams is {streams}, and onnxruntime has one; choose --backend openvino, or leave --streams out")
    providers = PROVIDERS[device]
    wanted = providers[0][0]
    present = onnxruntime.get_available_providers()
    if wanted not in present:
        package = PACKAGES.get(device, f"a build of onnxruntime that has {wanted}")
        raise UsageError(f"device is {device!r}, which this onnxruntime does not support; install {package}, or use the cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: whatever else there is to say, we say
    options.intra_op_num_threads = threads or 0  # 0: one a core
    if device == "directml":  # its documentation asks for both
        options.enable_mem_pattern = False
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    usable: list[Any] = [(name, dict(arguments)) for name, arguments in providers if name in present]
    try:
        session = open_session(path, options, usable, as_it_stands or device != "cpu")
    except Exception as error:  # ONNX Runtime's own errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise no_model(path, reason) from error
    if wanted not in session.get_providers():  # it falls back to the CPU without an error
        raise InputError(f"device is {device!r}, but its driver or libraries cannot be loaded; repair them, or use the cpu")
    properties = session.get_modelmeta().custom_metadata_map
    metadata = Metadata.from_properties(properties, str(path))
    ports = {each.name: _port(each) for each in (*session.get_inputs(), *session.get_outputs())}
    check_signature(ports, metadata, path)
    computes_in = _precision(properties, device)
    if precision is not None and precision != computes_in:
        raise UsageError(f"{path}: on {device} it computes in {computes_in}, not in {precision}; leave --precision out")
    return OnnxBackend(session, metadata, computes_in, 1 if device == "cpu" else GPU_BATCH)


def open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: Sequence[Any], as_it_stands: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a file, with its graph rewritten unless it is to run `as_it_stands`. Raises what ONNX Runtime raises for the file."""
    # What cannot be rewritten, or not run then, runs as it stands; neither package's errors have a common base.
    with suppress(Exception):
        if not as_it_stands and (rewritten := _rewritten(path)):
            return onnxruntime.InferenceSession(rewritten, options, providers=providers)
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _rewritten(path: Path) -> bytes | None:
    """The model of a file with its graph as it runs fastest on a CPU; None where that is the file's own."""
    if path.stat().st_size not in WORTH_REWRITING or find_spec("onnx") is None:
        return None
    import onnx

    from cmunext.inference.backends.onnx_upsampling import convolve_before_upsampling
    from cmunext.inference.backends.onnx_winograd import halve_multiplications

    model = onnx.load(path)
    rewritten = convolve_before_upsampling(model) + halve_multiplications(model)
    return model.SerializeToString() if rewritten else None


def _port(node: Any) -> Port:
    shape = [size if isinstance(size, int) else None for size in node.shape]
    return Port(node.type, node.type == "tensor(float)", shape)


def _precision(properties: Mapping[str, str], device: str) -> str:
    stated = properties.get(PRECISION, "float32")
    # TensorRT multiplies float32 numbers as TF32 where the GPU can, and its provider has no option against it.
    return "tf32" if device == "tensorrt" and stated == "float32" else stated
