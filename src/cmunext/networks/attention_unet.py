"""Attention U-Net: U-Net whose skip connections are weighted, pixel by pixel, by what the decoder already knows.

Paper: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018, arXiv 1804.03999 (Figure 2: the gate).
This is the build of Table 2 of the CMUNeXt paper (34,878,573 parameters). It departs from the publication: 2-D instead of 3-D,
the gate takes the upsampled features at the skip's own resolution (so the attention map needs no resampling), and there is
no deep supervision. Weights keep PyTorch's default initialisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cmunext.networks.blocks import DoubleConv, UpConv, require_divisible


class AttentionGate(nn.Module):
    """Additive attention (equations 1 and 2): skip and gating signal, both N x C x H x W -> the skip, scaled in [0, 1] per pixel."""

    def __init__(self, channels: int):
        super().__init__()
        middle = channels // 2
        self.from_signal = nn.Sequential(nn.Conv2d(channels, middle, 1), nn.BatchNorm2d(middle))
        self.from_skip = nn.Sequential(nn.Conv2d(channels, middle, 1), nn.BatchNorm2d(middle))
        self.attention = nn.Sequential(nn.Conv2d(middle, 1, 1), nn.BatchNorm2d(1))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        hidden = torch.relu(self.from_signal(signal) + self.from_skip(skip))
        return skip * torch.sigmoid(self.attention(hidden))


class AttentionUNet(nn.Module):
    """Attention U-Net: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    widths : channels of the levels, which run at 1, 1/2, 1/4, 1/8 and 1/16 of the input.

    Raises
    ------
    ValueError : at the forward pass, when height or width do not divide by 16.
    """

    size_divisor = 16

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, widths: Sequence[int] = (64, 128, 256, 512, 1024)):
        super().__init__()
        self.encoder = nn.ModuleList(
            DoubleConv(before, after) for before, after in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        levels = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (deep, shallow) channels, deepest level first
        self.upsample = nn.ModuleList(UpConv(deep, shallow, mode="nearest") for deep, shallow in levels)
        self.gate = nn.ModuleList(AttentionGate(shallow) for _, shallow in levels)
        self.decoder = nn.ModuleList(DoubleConv(2 * shallow, shallow) for _, shallow in levels)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        x = self.encoder[0](x)
        skips = []
        for stage in self.encoder[1:]:
            skips.append(x)
            x = stage(max_pool2d(x, 2))
        for upsample, gate, stage in zip(self.upsample, self.gate, self.decoder, strict=True):
            upsampled = upsample(x)
            x = stage(torch.cat((gate(skips.pop(), upsampled), upsampled), dim=1))
        return self.head(x)
