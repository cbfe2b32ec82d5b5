"""Whether a library that was just built computes what it should: outputs and gradients of small maps beside PyTorch's in float64.

Run as `python -m cmunext.training.kernels.proof LIBRARY` in a process of its own, for a library that was built for instructions which this
machine does not have ends it. The exit code is 0 when all is right.
"""

import ctypes
import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from cmunext.networks.blocks import bottleneck, norm_of_gelu, relu_of_norm
from cmunext.training.host import FastLayers
from cmunext.training.kernels.library import open_library

LARGEST = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # difference, as a part of the largest number


class Layers(nn.Module):
    """All that the kernels compute, behind each other: N x 8 x H x W -> N x 16 x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.BatchNorm2d(8), nn.BatchNorm2d(24), nn.BatchNorm2d(16)
        self.expand, self.project = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = relu_of_norm(x, self.first)
        return norm_of_gelu(bottleneck(x, self.expand, self.second, self.project), self.third)


def results(layers: Layers, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics of a step."""
    x = x.clone().requires_grad_()
    output = layers(x)
    output.backward(gradient)
    found = {"the output": output.detach(), "the gradient of the input": x.grad}
    found |= {f"the gradient of {name}": parameter.grad for name, parameter in layers.named_parameters()}
    return found | dict(layers.named_buffers())


def prove(library: ctypes.CDLL) -> str | None:
    """None when the library is right, or what is wrong."""
    torch.manual_seed(0)
    layers = Layers()
    for norm in (layers.first, layers.second, layers.third):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    images, gradient = torch.randn(2, 8, 30, 34), torch.randn(2, 16, 30, 34)
    for format, largest in LARGEST.items():
        x, given = (tensor.to(format).to(memory_format=torch.channels_last) for tensor in (images, gradient))
        expected = results(deepcopy(layers).double(), x.double(), given.double())
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with FastLayers(library):
                found = results(deepcopy(layers), x, given)
            for name, right in expected.items():
                difference = float((found[name].double() - right).abs().max())
                if not difference <= largest * max(1, float(right.abs().max())):
                    return f"error: in {format} {name} differs by {difference:.2g}"
    return None


if __name__ == "__main__":
    problem = prove(open_library(Path(sys.argv[1])))
    sys.exit(problem)
