"""CMUNeXt-S whose depthwise convolutions are trained as three in parallel, k x k, 3 x 3 and none, each with a BatchNorm of its own.

In evaluation they are one convolution of k x k again, exactly (`merged`), so that the network that segments would not change.
Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021; "Scaling Up Your Kernels to 31x31", CVPR 2022.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from cmunext.networks import cmunext as plain


class Parallel(nn.Module):
    """The sum of a k x k and a 3 x 3 depthwise convolution and the input itself, each normalised: N x C x H x W -> the same shape."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.large = _depthwise(channels, kernel_size)
        self.small = _depthwise(channels, 3)
        self.large_norm, self.small_norm, self.input_norm = (nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.large_norm(self.large(x)) + self.small_norm(self.small(x)) + self.input_norm(x)

    def merged(self) -> nn.Conv2d:
        """The one convolution that gives the same in evaluation."""
        channels, size = self.large.weight.shape[0], self.large.kernel_size[0]
        identity = torch.zeros_like(self.large.weight)
        identity[:, :, size // 2, size // 2] = 1
        weight, bias = torch.zeros_like(identity), torch.zeros(channels)
        branches = (
            (self.large.weight, self.large_norm),
            (pad(self.small.weight, [(size - 3) // 2] * 4), self.small_norm),
            (identity, self.input_norm),
        )
        for kernel, norm in branches:
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight = weight + kernel * scale[:, None, None, None]
            bias = bias + norm.bias - norm.running_mean * scale
        one = _depthwise(channels, size, bias=True)
        one.load_state_dict({"weight": weight, "bias": bias})
        return one


def _depthwise(channels: int, kernel_size: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)


def cmunext_s(in_channels: int = 3, num_classes: int = 1) -> nn.Module:
    """CMUNeXt-S with `Parallel` in place of its depthwise convolutions."""
    network = plain.cmunext_s(in_channels, num_classes)
    for stage in network.encoder:
        for block in stage.blocks:
            block.depthwise = Parallel(block.depthwise.in_channels, block.depthwise.kernel_size[0])
    return network
