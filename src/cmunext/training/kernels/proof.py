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

from cmunext.networks.blocks import bottleneck, convolved_upsampling, norm_of_gelu, relu_of_norm
from cmunext.training.host import FastLayers
from cmunext.training.kernels.library import open_library

LARGEST = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # difference, as a part of the largest number


class NormsAndBottleneck(nn.Module):
    """N x 8 x H x W -> N x 16 x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.BatchNorm2d(8), nn.BatchNorm2d(24), nn.BatchNorm2d(16)
        self.expand, self.project = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 16, 1)
        for norm in (self.first, self.second, self.third):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = relu_of_norm(x, self.first)
        return norm_of_gelu(bottleneck(x, self.expand, self.second, self.project), self.third)


class Upsampling(nn.Module):
    """N x 8 x H x W -> N x 16 x 2 H x 2 W."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample, self.convolution = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return convolved_upsampling(x, self.upsample, self.convolution)


class Convolutions(nn.Module):
    """N x 8 x H x W -> N x 16 x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.grouped(self.widen(x)))


class Depthwise(nn.Module):
    """N x 8 x H x W -> N x 16 x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Conv2d(8, 8, 9, padding=4, groups=8), nn.Conv2d(8, 16, 1)
        self.wide = nn.Conv2d(16, 16, 7, padding=3, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.widen(self.narrow(x)))


def results(layers: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics of a step."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        output = layers(x)
    output.backward(gradient)
    found = {"the output": output.detach(), "the gradient of the input": x.grad}
    found |= {f"the gradient of {name}": parameter.grad for name, parameter in layers.named_parameters()}
    return found | dict(layers.named_buffers())


def prove(library: ctypes.CDLL) -> str | None:
    """None when the library is right, or what is wrong."""
    torch.manual_seed(0)
    trials = (
        (NormsAndBottleneck(), torch.float32, 1),
        (NormsAndBottleneck(), torch.bfloat16, 1),
        (Upsampling(), torch.float32, 2),
        (Upsampling(), torch.bfloat16, 2),
        (Convolutions(), torch.float32, 1),
        (Depthwise(), torch.float32, 1),
        (Depthwise(), torch.bfloat16, 1),
    )
    for layers, format, scale in trials:
        maps = torch.randn(2, 8, 30, 34), torch.randn(2, 16, scale * 30, scale * 34)
        x, given = (tensor.to(format).to(memory_format=torch.channels_last) for tensor in maps)
        expected = results(deepcopy(layers).double(), x.double(), given.double())
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with FastLayers(library):
                found = results(deepcopy(layers), x, given)
            for name, right in expected.items():
                difference = float((found[name].double() - right).abs().max())
                if not difference <= LARGEST[format] * max(1, float(right.abs().max())):
                    return f"error: in {format} {name} differs by {difference:.2g}"
    return None


if __name__ == "__main__":
    problem = prove(open_library(Path(sys.argv[1])))
    sys.exit(problem)
