"""U-Net 3+: every decoder level sees every scale.

Paper: Huang et al., "UNet 3+: A Full-Scale Connected UNet for Medical Image Segmentation", ICASSP 2020, arXiv 2004.08790
(Figure 2: one full-scale skip connection). This is the build of Table 2 of the CMUNeXt paper (26,971,777 parameters): without
the publication's deep supervision and classification-guided module, and with PyTorch's default initialisation. Its head is a
3 x 3 convolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cmunext.networks.blocks import ConvNormReLU, DoubleConv, require_divisible


class FullScaleStage(nn.Module):
    """One decoder level: brings the maps of all levels to its own resolution and fuses them.

    Level k runs at 1 / 2^k of the input. Takes the list of maps (level k: N x in_channels[k] x H/2^k x W/2^k) and gives
    N x (branch_channels * levels) x H/2^level x W/2^level.
    """

    def __init__(self, level: int, in_channels: Sequence[int], branch_channels: int):
        super().__init__()
        self.branches = nn.ModuleList()
        for source, channels in enumerate(in_channels):
            resize: nn.Module = nn.Identity()
            if source < level:
                resize = nn.MaxPool2d(2 ** (level - source))
            elif source > level:
                resize = nn.Upsample(scale_factor=2 ** (source - level), mode="bilinear")
            self.branches.append(nn.Sequential(resize, ConvNormReLU(channels, branch_channels)))
        width = branch_channels * len(in_channels)
        self.fuse = ConvNormReLU(width, width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.fuse(torch.cat([branch(x) for branch, x in zip(self.branches, maps, strict=True)], dim=1))


class UNet3Plus(nn.Module):
    """U-Net 3+: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    widths : channels of the encoder levels, which run at 1, 1/2, 1/4, 1/8 and 1/16 of the input.
    branch_channels : channels that each scale contributes to a decoder level.

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
        branch_channels: int = 64,
    ):
        super().__init__()
        self.encoder = nn.ModuleList(
            DoubleConv(before, after) for before, after in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        decoded = branch_channels * len(widths)
        deepest = len(widths) - 1
        self.decoder = nn.ModuleList(
            FullScaleStage(level, (*widths[: level + 1], *[decoded] * (deepest - level - 1), widths[-1]), branch_channels)
            for level in range(deepest)
        )
        self.head = nn.Conv2d(decoded, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        maps = [self.encoder[0](x)]
        for stage in self.encoder[1:]:
            maps.append(stage(max_pool2d(maps[-1], 2)))
        # From deep to shallow, a level's encoder map gives way to its decoder map: the levels above then see the latter.
        for level in reversed(range(len(self.decoder))):
            maps[level] = self.decoder[level](maps)
        return self.head(maps[0])
