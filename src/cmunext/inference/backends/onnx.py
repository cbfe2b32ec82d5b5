"""Networks in ONNX files, run by ONNX Runtime: neither training nor PyTorch is needed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.metadata import Metadata

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INPUT, OUTPUT = "image", "logits"
PRECISION = "precision"  # an entry of its own in the model's metadata; without it the arithmetic is float32


@dataclass(frozen=True)
class OnnxBackend:
    """A session of ONNX Runtime; see `Backend`."""

    session: onnxruntime.InferenceSession
    metadata: Metadata
    precision: str
    name: str = "onnxruntime"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w."""
        return self.session.run([OUTPUT], {INPUT: batch})[0]


def load(path: Path, threads: int | None = None, device: str = "cpu") -> OnnxBackend:
    """Open an .onnx file that describes itself.

    Raises
    ------
    UsageError : when this ONNX Runtime has no support for the device.
    InputError : when the file is no ONNX model, does not describe itself, or is not what it says.
    """
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise UsageError(
            f"device is {device!r}, which this onnxruntime does not support; install onnxruntime-gpu, or use the cpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: whatever else there is to say, we say
    options.intra_op_num_threads = threads or 0  # 0: one a core
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's own errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: it cannot be opened as an ONNX model ({reason}); copy or export it again") from error
    if provider not in session.get_providers():  # it falls back to the CPU without an error
        raise InputError(f"device is {device!r}, but its driver or libraries cannot be loaded; repair them, or use the cpu")
    properties = session.get_modelmeta().custom_metadata_map
    metadata = Metadata.from_properties(properties, str(path))
    _check_signature(session, metadata, path)
    return OnnxBackend(session, metadata, properties.get(PRECISION, "float32"))


def _check_signature(session: onnxruntime.InferenceSession, metadata: Metadata, path: Path) -> None:
    """The model's one input and one output must be what its metadata promises; a size that the file leaves open fits anything."""
    size = (metadata.preprocessing.height, metadata.preprocessing.width)
    expected = {INPUT: (metadata.in_channels, *size), OUTPUT: (metadata.num_classes, *size)}
    found = {each.name: each for each in (*session.get_inputs(), *session.get_outputs())}
    if set(found) != set(expected):
        raise InputError(
            f"{path}: the model has {', '.join(sorted(found))}; it must have the input {INPUT} and the output {OUTPUT}"
        )
    for name, promised in expected.items():
        shape = found[name].shape
        fits = len(shape) == 4 and all(
            not isinstance(has, int) or has == want for has, want in zip(shape[1:], promised, strict=True)
        )
        if not fits or found[name].type != "tensor(float)":
            raise InputError(
                f"{path}: the model's {name} is {found[name].type} of {shape}, and its metadata promises "
                f"tensor(float) of N x {' x '.join(map(str, promised))}; export the weights again"
            )
