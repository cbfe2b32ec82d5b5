"""Networks in .safetensors files and checkpoints, run by PyTorch. The only module of this room that imports torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.errors import UsageError
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


def load(path: Path, threads: int | None = None, device: str = "cpu") -> TorchBackend:
    """Open a weights file with `cmunext.weights`. `threads` is set for the whole process: PyTorch has no smaller scope.

    Raises UsageError when this PyTorch has no support for the device, and what `weights.load` raises.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', and PyTorch finds none; install its CUDA build and a driver, or use the cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = weights.load(path)
    network = loaded.network.eval().to(device, memory_format=torch.channels_last)
    return TorchBackend(network, loaded.metadata, device)
