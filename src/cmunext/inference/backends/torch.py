"""Networks in .safetensors files and checkpoints, run by PyTorch. The only module of this room that imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError
from cmunext.inference.backends import GPU_BATCH
from cmunext.metadata import Metadata

try:
    import torch
except ModuleNotFoundError as error:
    raise UsageError("this backend needs PyTorch; install cmunext[train], or give .onnx weights") from error

from cmunext import weights


@dataclass(frozen=True)
class TorchBackend:
    """A PyTorch module in evaluation mode on its device; see `Backend`."""

    network: Any
    metadata: Metadata
    device: str
    precision: str = "float32"
    name: str = "torch"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input float32 N x C x h x w -> logits float32 N x K x h x w."""
        with torch.inference_mode():
            images = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
            return self.network(images).float().cpu().contiguous().numpy()

    @property
    def preferred_batch(self) -> int:
        """Images that are best given to it at a time."""
        return 1 if self.device == "cpu" else GPU_BATCH


def load(
    path: Path,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    streams: int | None = None,
) -> TorchBackend:
    """Open a weights file with `cmunext.weights`. `threads` is set for the whole process: PyTorch has no smaller scope.

    Raises UsageError when this PyTorch has no support for the device, or is asked for bfloat16 or streams, which it has not here, and
    what `weights.load` raises.
    """
    if precision not in (None, "float32"):
        raise UsageError(
            f"precision is {precision!r}, and torch runs in float32 here; export to .onnx and choose --backend openvino"
        )
    if streams not in (None, 1):
        raise UsageError(f"streams is {streams}, and torch has one; export to .onnx and choose --backend openvino")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device is {device!r}, and torch runs on the cpu or cuda here; export to .onnx for the others")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', and PyTorch finds none; install its CUDA build and a driver, or use the cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = weights.load(path)
    network: Any = loaded.network.eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    return TorchBackend(network, loaded.metadata, device)
