"""CMUNeXt: large depthwise kernels, inverted bottlenecks, Skip-Fusion.

Paper: Tang et al., "CMUNeXt: An Efficient Medical Image Segmentation Network based on Large Kernel and Skip Fusion",
ISBI 2024, arXiv 2308.01239. Figure 1 is the whole network, equations 1 to 4 the CMUNeXt block, equations 5 and 6 Skip-Fusion.
The three sizes are those of Table 1; depths and kernels are the ones that give the parameters of Table 2 to the unit.

    name        widths                 depths     kernels    parameters
    cmunext-s   8, 16, 32, 64, 128     1 1 1 1 1  3 3 7 7 9     417,505
    cmunext     16, 32, 128, 160, 256  1 1 1 3 1  3 3 7 7 7   3,149,185
    cmunext-l   32, 64, 128, 256, 512  1 1 1 6 3  3 3 7 7 7   8,286,721

`cmunext-plain-skip` is the row "+ CMUNeXt Block" of Table 3: U-Net's double convolution in place of Skip-Fusion, and the
depths and kernels (1 1 1 1 3, 3 3 7 7 9) that reproduce that row's figures; they are not those of the released base network,
so the row is not a strict one-change ablation.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cmunext.networks.blocks import ConvNormReLU, DoubleConv, UpConv, bottleneck, norm_of_gelu, require_divisible


class CMUNeXtBlock(nn.Module):
    """One repeat of the CMUNeXt block (equations 1 to 3): N x C x H x W -> the same shape.

    The residual goes round the depthwise part only; the inverted bottleneck after it has none.
    """

    def __init__(self, channels: int, kernel_size: int, expansion: int = 4):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, expansion * channels, 1)
        self.expand_norm = nn.BatchNorm2d(expansion * channels)
        self.project = nn.Conv2d(expansion * channels, channels, 1)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + norm_of_gelu(self.depthwise(x), self.depthwise_norm)
        return norm_of_gelu(bottleneck(x, self.expand, self.expand_norm, self.project), self.project_norm)


class Stage(nn.Module):
    """`depth` CMUNeXt blocks, then the convolution that widens (equation 4): N x C x H x W -> N x C' x H x W."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, kernel_size: int):
        super().__init__()
        self.blocks = nn.Sequential(*(CMUNeXtBlock(in_channels, kernel_size) for _ in range(depth)))
        self.widen = ConvNormReLU(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.widen(self.blocks(x))


class SkipFusion(nn.Module):
    """Skip-Fusion (equations 5 and 6): N x 2C x H x W, skip channels first -> N x C x H x W.

    The grouped convolution looks at the skip and at the upsampled features apart; the inverted bottleneck then mixes them.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 4):
        super().__init__()
        self.grouped = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=2)
        self.grouped_norm = nn.BatchNorm2d(in_channels)
        self.expand = nn.Conv2d(in_channels, expansion * out_channels, 1)
        self.expand_norm = nn.BatchNorm2d(expansion * out_channels)
        self.project = nn.Conv2d(expansion * out_channels, out_channels, 1)
        self.project_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = norm_of_gelu(self.grouped(x), self.grouped_norm)
        return norm_of_gelu(bottleneck(x, self.expand, self.expand_norm, self.project), self.project_norm)


class CMUNeXt(nn.Module):
    """CMUNeXt of any width and depth: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    widths : channels of the five encoder stages, which run at 1, 1/2, 1/4, 1/8 and 1/16 of the input.
    depths : CMUNeXt blocks in each stage.
    kernels : size of the depthwise kernel in each stage, odd.
    fusion : `SkipFusion`, or any module of (2C, C) channels in its place.

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
        widths: Sequence[int],
        depths: Sequence[int],
        kernels: Sequence[int],
        fusion: Callable[[int, int], nn.Module] = SkipFusion,
    ):
        super().__init__()
        self.stem = ConvNormReLU(in_channels, widths[0])
        self.encoder = nn.ModuleList(
            Stage(*args) for args in zip((widths[0], *widths[:-1]), widths, depths, kernels, strict=True)
        )
        levels = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (deep, shallow) channels, deepest level first
        self.upsample = nn.ModuleList(UpConv(deep, shallow) for deep, shallow in levels)
        self.fusion = nn.ModuleList(fusion(2 * shallow, shallow) for _, shallow in levels)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        x = self.encoder[0](self.stem(x))
        skips = []
        for stage in self.encoder[1:]:
            skips.append(x)
            x = stage(max_pool2d(x, 2))
        for upsample, fuse in zip(self.upsample, self.fusion, strict=True):
            x = fuse(torch.cat((skips.pop(), upsample(x)), dim=1))
        return self.head(x)


cmunext_s = partial(CMUNeXt, widths=(8, 16, 32, 64, 128), depths=(1, 1, 1, 1, 1), kernels=(3, 3, 7, 7, 9))
cmunext = partial(CMUNeXt, widths=(16, 32, 128, 160, 256), depths=(1, 1, 1, 3, 1), kernels=(3, 3, 7, 7, 7))
cmunext_l = partial(CMUNeXt, widths=(32, 64, 128, 256, 512), depths=(1, 1, 1, 6, 3), kernels=(3, 3, 7, 7, 7))
cmunext_plain_skip = partial(
    CMUNeXt,
    widths=(16, 32, 128, 160, 256),
    depths=(1, 1, 1, 1, 3),
    kernels=(3, 3, 7, 7, 9),
    fusion=DoubleConv,
)
