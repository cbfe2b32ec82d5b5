"""U-Net: an encoder that halves, a decoder that doubles, and a skip connection at every level.

Paper: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, arXiv 1505.04597.
This is the build of Table 2 of the CMUNeXt paper (34.52 M parameters), which departs from the publication in four points:
convolutions keep the size (padding 1), BatchNorm follows each, nearest upsampling and a convolution replace the transposed
convolution, and the weights keep PyTorch's default initialisation.

    name          widths                    parameters
    unet          64, 128, 256, 512, 1024   34,527,041
    reduced-unet  16, 32, 128, 160, 256      3,343,217   (the row "Reduced U-Net" of Table 3: CMUNeXt's widths)
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cmunext.networks.blocks import DoubleConv, UpConv, require_divisible


class UNet(nn.Module):
    """U-Net of any width: N x in_channels x H x W -> logits N x num_classes x H x W.

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
        self.decoder = nn.ModuleList(DoubleConv(2 * shallow, shallow) for _, shallow in levels)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        x = self.encoder[0](x)
        skips = []
        for stage in self.encoder[1:]:
            skips.append(x)
            x = stage(max_pool2d(x, 2))
        for upsample, stage in zip(self.upsample, self.decoder, strict=True):
            x = stage(torch.cat((skips.pop(), upsample(x)), dim=1))
        return self.head(x)


reduced_unet = partial(UNet, widths=(16, 32, 128, 160, 256))
