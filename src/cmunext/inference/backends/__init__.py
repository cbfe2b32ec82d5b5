"""What runs a network: one module a runtime, behind one small interface. Nothing is imported before a file is opened."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.metadata import Metadata
from cmunext.seal import check_seal

DEVICES = ("cpu", "cuda", "tensorrt", "coreml", "directml")  # the last three through onnxruntime
PRECISIONS = ("float32", "bfloat16")
MOST_THREADS = 1024  # and streams
GPU_BATCH = 8  # images at a time that keep a GPU busy; a CPU has enough to do with one

# name -> (module, the suffixes of the weights files that it opens, first that of weights by name). The first backend that opens a
# suffix is what `auto` starts from.
BACKENDS: dict[str, tuple[str, Sequence[str]]] = {
    "onnxruntime": ("onnx", (".onnx",)),
    "openvino": ("openvino", (".onnx",)),
    "native": ("native", (".onnx",)),
    "torch": ("torch", (".safetensors", ".pth", ".pt")),
}
SUFFIXES = tuple(dict.fromkeys(suffix for _, suffixes in BACKENDS.values() for suffix in suffixes))


class Backend(Protocol):
    """A network that is ready to run.

    Attributes
    ----------
    name : of the runtime, a key of `BACKENDS`.
    precision : of the arithmetic: "float32", "bfloat16", "tf32", or what the file states (such as "int8").
    metadata : what the weights file says about itself.
    preferred_batch : images that are best given to it at a time.
    """

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def metadata(self) -> Metadata: ...
    @property
    def preferred_batch(self) -> int: ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w."""
        ...


def open_weights(
    path: Path,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    streams: int | None = None,
    measure: bool = False,
) -> Backend:
    """Open a weights file.

    Parameters
    ----------
    path : .onnx, .safetensors, .pth or .pt.
    backend : a key of `BACKENDS`, or "auto": by the suffix, and for .onnx on the CPU what `choice` has found to be fastest.
    device : one of `DEVICES`.
    threads : of the CPU; None leaves it to the runtime.
    precision : one of `PRECISIONS`. None means float32, but for "auto", which may choose bfloat16 where it was seen to give the
        same masks (`choice.TOLERANCE`).
    streams : images that run at the same time (openvino); None means one.
    measure : let "auto" time the installed runtimes where it has no measurement of these weights on this machine. Takes seconds.

    Raises
    ------
    UsageError : when there is no such file, backend, device or precision, or they do not go together.
    InputError : when the file's content cannot be used.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}; choose one of {', '.join(DEVICES)}")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    for name, value in (("threads", threads), ("streams", streams)):
        if value is not None and not 1 <= value <= MOST_THREADS:
            raise UsageError(f"{name} is {value}; it must be in 1..{MOST_THREADS}")
    if not path.exists():
        raise UsageError(f"{path}: there is no such weights file; check the name")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name a weights file ({', '.join(SUFFIXES)})")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: this file is empty; copy or export it again")
    chosen = _by_suffix(path) if backend == "auto" else backend
    if path.suffix.lower() not in BACKENDS[chosen][1]:
        opened = ", ".join(BACKENDS[chosen][1])
        raise UsageError(f"{path}: {chosen} opens {opened}; choose --backend auto, or give such a file of these weights")
    sealed = path.suffix.lower() == ".onnx" and check_seal(path)
    if backend == "auto" and chosen == "onnxruntime" and device == "cpu":
        from cmunext.inference.backends import choice

        chosen, precision = choice.choose(path, threads, precision, streams, measure)
    if chosen == "openvino" and not sealed:  # its reader does not survive every malformed file
        backend_module("onnxruntime").load(path, as_it_stands=True)
    return backend_module(chosen).load(path, threads=threads, device=device, precision=precision, streams=streams)


def backend_module(backend: str):
    """The module of a backend, a key of `BACKENDS`, which imports its runtime."""
    return import_module(f"{__name__}.{BACKENDS[backend][0]}")


def _by_suffix(path: Path) -> str:
    for name, (_, suffixes) in BACKENDS.items():
        if path.suffix.lower() in suffixes:
            return name
    raise UsageError(f"{path}: weights files end in {', '.join(SUFFIXES)}; name one of these")
