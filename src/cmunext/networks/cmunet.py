"""CMU-Net: U-Net with ConvMixer layers in the bottleneck and multi-scale attention gates on the skips.

Paper: Tang et al., "CMU-Net: A Strong ConvMixer-based Medical Ultrasound Image Segmentation Network", ISBI 2023,
arXiv 2210.13012 (equations 1 and 2: ConvMixer; Figure 1: the multi-scale attention gate, MSAG). The build of Table 2 of the
CMUNeXt paper (49,932,353 parameters) is the same function as the publication's; weights keep PyTorch's default initialisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d

from cmunext.networks.blocks import DoubleConv, UpConv, require_divisible


class ConvMixerLayer(nn.Module):
    """Mixes over space with a residual depthwise convolution, then over channels: N x C x H x W -> the same shape."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.pointwise_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depthwise_norm(gelu(self.depthwise(x)))
        return self.pointwise_norm(gelu(self.pointwise(x)))


class MultiScaleAttentionGate(nn.Module):
    """Three receptive fields vote on how much each value of a skip is raised: N x C x H x W -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.ordinary = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.dilated = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=2, dilation=2), nn.BatchNorm2d(channels))
        self.vote = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.relu(torch.cat((self.point(x), self.ordinary(x), self.dilated(x)), dim=1))
        return x + x * torch.sigmoid(self.vote(scales))


class CMUNet(nn.Module):
    """CMU-Net: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    widths : channels of the levels, which run at 1, 1/2, 1/4, 1/8 and 1/16 of the input.
    mixer_depth, mixer_kernel : number of ConvMixer layers after the deepest level, and their odd kernel size.

    Raises
    ------
    ValueError : at the forward pass, when height or width do not divide by 16.
    """

    size_divisor = 16

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        mixer_depth: int = 7,
        mixer_kernel: int = 7,
    ):
        super().__init__()
        self.encoder = nn.ModuleList(
            DoubleConv(before, after) for before, after in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.mixer = nn.Sequential(*(ConvMixerLayer(widths[-1], mixer_kernel) for _ in range(mixer_depth)))
        levels = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (deep, shallow) channels, deepest level first
        self.upsample = nn.ModuleList(UpConv(deep, shallow, mode="nearest") for deep, shallow in levels)
        self.gate = nn.ModuleList(MultiScaleAttentionGate(shallow) for _, shallow in levels)
        self.decoder = nn.ModuleList(DoubleConv(2 * shallow, shallow) for _, shallow in levels)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        x = self.encoder[0](x)
        skips = []
        for stage in self.encoder[1:]:
            skips.append(x)
            x = stage(max_pool2d(x, 2))
        x = self.mixer(x)
        for upsample, gate, stage in zip(self.upsample, self.gate, self.decoder, strict=True):
            x = stage(torch.cat((gate(skips.pop()), upsample(x)), dim=1))
        return self.head(x)
