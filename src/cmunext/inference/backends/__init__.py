"""What runs a network: one module a runtime, behind one small interface. Nothing is imported before a file is opened."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import InputError, UsageError
from cmunext.metadata import Metadata

DEVICES = ("cpu", "cuda")

# name -> (module, the suffixes of the weights files that it opens). The first that opens a suffix is what `auto` means.
BACKENDS: dict[str, tuple[str, Sequence[str]]] = {
    "onnxruntime": ("onnx", (".onnx",)),
    "torch": ("torch", (".safetensors", ".pth", ".pt")),
}
SUFFIXES = tuple(suffix for _, suffixes in BACKENDS.values() for suffix in suffixes)


class Backend(Protocol):
    """A network that is ready to run.

    Attributes
    ----------
    name : of the runtime, a key of `BACKENDS`.
    precision : of the arithmetic, "float32" or "int8".
    metadata : what the weights file says about itself.
    """

    name: str
    precision: str
    metadata: Metadata

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w."""
        ...


def open_weights(path: Path, backend: str = "auto", device: str = "cpu", threads: int | None = None) -> Backend:
    """Open a weights file.

    Parameters
    ----------
    path : .onnx, .safetensors, .pth or .pt.
    backend : a key of `BACKENDS`, or "auto": by the suffix.
    device : "cpu" or "cuda".
    threads : of the CPU; None leaves it to the runtime.

    Raises
    ------
    UsageError : when there is no such file, backend or device, or they do not go together.
    InputError : when the file's content cannot be used.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}; choose one of {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    if not path.exists():
        raise UsageError(f"{path}: there is no such weights file; check the name")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name a weights file ({', '.join(SUFFIXES)})")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: this file is empty; copy or export it again")
    chosen = _by_suffix(path) if backend == "auto" else backend
    module, suffixes = BACKENDS[chosen]
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: {chosen} opens {', '.join(suffixes)}; choose --backend auto, or export the weights")
    return import_module(f"{__name__}.{module}").load(path, threads=threads, device=device)


def _by_suffix(path: Path) -> str:
    for name, (_, suffixes) in BACKENDS.items():
        if path.suffix.lower() in suffixes:
            return name
    raise UsageError(f"{path}: weights files end in {', '.join(SUFFIXES)}; name one of these")
