"""Mobile U-ViT: CMUNeXt-like convolutions at high resolution, sparse attention at 1/8, a small transformer at the bottleneck.

Paper: Tang et al., "Mobile U-ViT: Revisiting large kernel and U-shaped ViT for efficient medical image segmentation",
ACM Multimedia 2025, arXiv 2508.01064. The build is the one of the companion benchmark that its authors published; it trains
from PyTorch's default initialisation.

    name            widths            encoder depths, kernels  local-global  transformer  heads  parameters
    mobile-uvit     16, 32, 64, 128   1 1 3, 3 3 7             3             3            4      1,390,305
    mobile-uvit-l   32, 64, 128, 256  1 1 3, 3 3 7             3             4            8      6,209,217
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d

from cmunext.networks.blocks import ConvNormReLU, DoubleConv, DropPath, UpConv, require_divisible

GATE_KERNEL = 9  # depthwise kernel of the local part, at every size of the network


class LargeKernelBlock(nn.Module):
    """Residual depthwise convolution, then a residual inverted bottleneck: N x C x H x W -> the same shape."""

    def __init__(self, channels: int, kernel_size: int, expansion: int = 4):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, expansion * channels, 1)
        self.expand_norm = nn.BatchNorm2d(expansion * channels)
        self.project = nn.Conv2d(expansion * channels, channels, 1)
        self.project_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depthwise_norm(gelu(self.depthwise(x)))
        hidden = self.expand_norm(gelu(self.expand(x)))
        return x + self.project_norm(gelu(self.project(hidden)))


class LocalGates(nn.Module):
    """Three gates, one after the other, that raise or lower each value by at most half: N x C x H x W -> the same shape."""

    def __init__(self, channels: int, drop_path: float, expansion: int = 4):
        super().__init__()
        large = partial(nn.Conv2d, channels, channels, GATE_KERNEL, padding=GATE_KERNEL // 2, groups=channels)
        self.branches = nn.ModuleList(
            (
                large(),
                nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.Conv2d(channels, channels, 1),
                    large(),
                    nn.Conv2d(channels, channels, 1),
                    DropPath(drop_path),
                ),
                nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.Conv2d(channels, expansion * channels, 3, padding=1, groups=channels),
                    nn.GELU(),
                    nn.Conv2d(expansion * channels, channels, 3, padding=1, groups=channels),
                    DropPath(drop_path),
                ),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + x * (torch.sigmoid(branch(x)) - 0.5)
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention over all pixels, or (sparse) over every second row and column: N x H x W x C -> the same shape.

    The sparse form attends among the top-left pixels of all 2 x 2 cells and spreads each result back over its cell with a
    transposed depthwise convolution.
    """

    def __init__(self, channels: int, heads: int, *, sparse: bool):
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.sparse = sparse
        if sparse:
            self.subsample = nn.AvgPool2d(1, stride=2)  # averages nothing: the top-left pixel of each cell
            self.spread = nn.ConvTranspose2d(channels, channels, 2, stride=2, groups=channels)
            self.spread_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.sparse:
            x = self.subsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # NHWC -> NCHW for the pooling, and back
        height, width = x.shape[1:3]
        query, key, value = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each N h (HW) d
        attention = torch.softmax(query @ key.mT * self.scale, dim=-1)
        x = (attention @ value).transpose(1, 2).flatten(2).unflatten(1, (height, width))  # N h (HW) d -> N H W C
        if self.sparse:
            x = self.spread_norm(self.spread(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # NHWC -> NCHW, and back
        return self.project(x)


class GlobalBlock(nn.Module):
    """A convolution for position, then a pre-norm transformer layer: N x C x H x W -> the same shape."""

    def __init__(self, channels: int, heads: int, *, sparse: bool = False, drop_path: float = 0.0, expansion: int = 4):
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, heads, sparse=sparse)
        self.mlp_norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, expansion * channels), nn.GELU(), nn.Linear(expansion * channels, channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.position(x)).permute(0, 2, 3, 1)  # NCHW -> NHWC
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        x = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return x.permute(0, 3, 1, 2)  # NHWC -> NCHW


class MobileUViT(nn.Module):
    """Mobile U-ViT: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask). A network built for three
        channels also takes grey input, which it repeats.
    widths : channels of the three convolutional levels and of the transformer.
    depths, kernels : large-kernel blocks in each convolutional level, and their odd kernel size.
    local_global_depth, transformer_depth, heads : blocks of the two kinds at 1/8 of the input, and attention heads of both.
    drop_path : rate of stochastic depth in the local-global blocks.

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
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (1, 1, 3),
        kernels: Sequence[int] = (3, 3, 7),
        local_global_depth: int = 3,
        transformer_depth: int = 3,
        heads: int = 4,
        drop_path: float = 0.1,
    ):
        super().__init__()
        *levels, deep = widths
        self.in_channels = in_channels
        self.stem = ConvNormReLU(in_channels, levels[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(*(LargeKernelBlock(before, kernel) for _ in range(depth)), ConvNormReLU(before, after))
            for before, after, depth, kernel in zip((levels[0], *levels[:-1]), levels, depths, kernels, strict=True)
        )
        shallow = levels[-1]
        self.local_global = nn.Sequential()
        for _ in range(local_global_depth):
            self.local_global.append(LocalGates(shallow, drop_path))
            self.local_global.append(GlobalBlock(shallow, heads, sparse=True, drop_path=drop_path))
        self.widen = DoubleConv(shallow, deep)
        self.transformer = nn.Sequential(*(GlobalBlock(deep, heads) for _ in range(transformer_depth)))
        self.narrow = DoubleConv(deep, shallow)
        outs = (*levels[-2::-1], levels[0])  # each level hands over the channels of the next; the last keeps its own
        self.fusion = nn.ModuleList(DoubleConv(2 * level, level) for level in reversed(levels))
        self.upsample = nn.ModuleList(
            UpConv(level, out, align_corners=True) for level, out in zip(reversed(levels), outs, strict=True)
        )
        self.head = nn.Conv2d(levels[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        if x.shape[1] == 1 and self.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        x = self.stem(x)
        skips = []  # every skip joins the decoder at half its resolution, so its pooled form is kept
        for stage in self.encoder:
            x = max_pool2d(stage(x), 2)
            skips.append(x)
        x = self.narrow(self.transformer(self.widen(self.local_global(x))))
        for fuse, upsample in zip(self.fusion, self.upsample, strict=True):
            x = upsample(fuse(torch.cat((x, skips.pop()), dim=1)))
        return self.head(x)


mobile_uvit_l = partial(MobileUViT, widths=(32, 64, 128, 256), transformer_depth=4, heads=8)
