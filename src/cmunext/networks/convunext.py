"""ConvUNeXt: ConvNeXt blocks in a small U-Net whose skips pass a gate.

Paper: Han et al., "ConvUNeXt: An efficient convolution neural network for medical image segmentation",
Knowledge-Based Systems 253 (2022) 109512 (Figures 1 to 4: the network, the block, the attention gate of the decoder).
Widths are those of the publication's base configuration (32 channels, 3,505,697 parameters), which also gives the figures of
Table 2 of the CMUNeXt paper. Weights keep PyTorch's default initialisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from cmunext.networks.blocks import require_divisible


class ConvNeXtBlock(nn.Module):
    """7 x 7 depthwise convolution and an inverted bottleneck, residual, GELU at the exit: N x C x H x W -> the same shape.

    The padding reflects, so height and width must be at least 4.
    """

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, padding_mode="reflect", groups=channels)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.project = nn.Linear(expansion * channels, channels)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise_norm(self.depthwise(x)).permute(0, 2, 3, 1)  # NCHW -> NHWC
        hidden = self.project(gelu(self.expand(hidden))).permute(0, 3, 1, 2)  # NHWC -> NCHW
        return gelu(x + self.project_norm(hidden))


class GatedUp(nn.Module):
    """One decoder level: N x C x H x W and a skip N x C x 2H x 2W -> N x C' x 2H x 2W.

    The upsampled features decide, as in a recurrent cell, how much of the skip stays and what is written into it.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.gates = nn.Linear(in_channels, 3 * in_channels)
        self.keep = nn.Linear(in_channels, in_channels)
        self.mix = nn.Linear(in_channels, in_channels)
        self.reduce = nn.Conv2d(2 * in_channels, out_channels, 1)
        self.block = ConvNeXtBlock(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        upsampled = self.upsample(self.norm(x))
        for_keep, for_write, content = self.gates(upsampled.permute(0, 2, 3, 1)).chunk(3, dim=-1)  # NCHW -> NHWC
        skip = skip.permute(0, 2, 3, 1)  # NCHW -> NHWC
        skip = torch.sigmoid(self.keep(for_keep + skip)) * skip + torch.sigmoid(for_write) * torch.tanh(content)
        skip = self.mix(skip).permute(0, 3, 1, 2)  # NHWC -> NCHW
        return self.block(self.reduce(torch.cat((skip, upsampled), dim=1)))


class ConvUNeXt(nn.Module):
    """ConvUNeXt: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    width : channels of the first level; the next three have 2, 4 and 8 times as many, and the deepest 8 times.
    depths : blocks in each of the five levels, which run at 1, 1/2, 1/4, 1/8 and 1/16 of the input.

    Raises
    ------
    ValueError : at the forward pass, when height or width do not divide by 16 or are under 64 (the 7 x 7 kernels of the
        deepest level reflect at the edge and need 4 pixels there).
    """

    size_divisor = 16
    minimum_size = 64

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, width: int = 32, depths: Sequence[int] = (1, 1, 1, 3, 1)):
        super().__init__()
        widths = tuple(scale * width for scale in (1, 2, 4, 8, 8))
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, padding=3, padding_mode="reflect"),
            nn.BatchNorm2d(width),
            nn.GELU(),
            *(ConvNeXtBlock(width) for _ in range(depths[0])),
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(before),
                nn.Conv2d(before, after, 2, stride=2),
                *(ConvNeXtBlock(after) for _ in range(depth)),
            )
            for before, after, depth in zip(widths[:-1], widths[1:], depths[1:], strict=True)
        )
        # Each level hands over as many channels as the skip of the next one has; the last keeps its own.
        outs = (*widths[2::-1], width)
        self.decoder = nn.ModuleList(GatedUp(skip, out) for skip, out in zip(widths[3::-1], outs, strict=True))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor, minimum=self.minimum_size)
        x = self.stem(x)
        skips = []
        for stage in self.encoder:
            skips.append(x)
            x = stage(x)
        for stage in self.decoder:
            x = stage(x, skips.pop())
        return self.head(x)
