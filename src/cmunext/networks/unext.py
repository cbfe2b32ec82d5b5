"""UNeXt: a small convolutional U-Net whose two deepest levels are MLPs on shifted features.

Paper: Valanarasu and Patel, "UNeXt: MLP-based Rapid Medical Image Segmentation Network", MICCAI 2022, arXiv 2203.04967
(Figure 2: shifted and tokenised MLP; equations 1 to 3). The build of Table 2 of the CMUNeXt paper (1,471,921 parameters) is the
publication's own. The published 0.58 GFLOPs come from another counter than the other rows (0.57 by theirs).
"""

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, max_pool2d, pad

from cmunext.networks.blocks import require_divisible

SHIFTS = 5  # the channels move by -2, -1, 0, 1 and 2 pixels


def shift(x: Tensor, axis: int) -> Tensor:
    """Move one fifth of the channels by each of -2 to 2 pixels along `axis`, zeros coming in: N x H x W x C -> the same shape.

    `axis` is 1 for height and 2 for width.
    """
    length, reach = x.shape[axis], SHIFTS // 2
    padded = pad(x, (0, 0, 0, 0, reach, reach) if axis == 1 else (0, 0, reach, reach))
    chunks = padded.split(ceil(x.shape[-1] / SHIFTS), dim=-1)
    return torch.cat([chunk.narrow(axis, 2 * reach - step, length) for step, chunk in enumerate(chunks)], dim=-1)


class ShiftedMLP(nn.Module):
    """Residual MLP whose two linear layers see rows, then columns, displaced: N x H x W x C -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.along_height = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.along_width = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.along_height(shift(self.norm(x), axis=1))
        hidden = self.depthwise(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # NHWC -> NCHW for the convolution, and back
        return x + self.along_width(shift(gelu(hidden), axis=2))


class TokenStage(nn.Module):
    """A convolution, if any, then one shifted MLP and LayerNorm: N x C x H x W -> N x C' x H' x W'.

    With `in_channels` other than None, an overlapping patch embedding (3 x 3, stride 2) comes first and halves the size.
    """

    def __init__(self, in_channels: int | None, channels: int):
        super().__init__()
        self.embed: nn.Module = nn.Identity()
        self.embed_norm: nn.Module = nn.Identity()
        if in_channels is not None:
            self.embed = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
            self.embed_norm = nn.LayerNorm(channels)
        self.mlp = ShiftedMLP(channels)
        self.norm = nn.LayerNorm(channels)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)  # NCHW -> NHWC
        x = self.norm(self.mlp(self.embed_norm(x)))
        return x.permute(0, 3, 1, 2)  # NHWC -> NCHW


class UNeXt(nn.Module):
    """UNeXt: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    widths : channels of the three convolutional levels, which leave at 1/2, 1/4 and 1/8 of the input, and of the two token
        levels at 1/16 and 1/32.

    Raises
    ------
    ValueError : at the forward pass, when height or width do not divide by 32.
    """

    size_divisor = 32

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, widths: Sequence[int] = (16, 32, 128, 160, 256)):
        super().__init__()
        self.encoder = nn.ModuleList(
            _conv_norm(before, after) for before, after in zip((in_channels, *widths[:2]), widths[:3], strict=True)
        )
        self.encoder_tokens = nn.ModuleList((TokenStage(widths[2], widths[3]), TokenStage(widths[3], widths[4])))
        self.decoder = nn.ModuleList(_conv_norm(widths[level], widths[level - 1]) for level in (4, 3, 2, 1))
        self.decoder_tokens = nn.ModuleList((TokenStage(None, widths[3]), TokenStage(None, widths[2])))
        self.last = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        skips = []
        for convolution in self.encoder:
            x = torch.relu(max_pool2d(convolution(x), 2))
            skips.append(x)
        for stage in self.encoder_tokens:
            x = stage(x)
            skips.append(x)
        x = skips.pop()  # the deepest map is where the decoder starts
        for level, convolution in enumerate(self.decoder):
            x = _upsample_relu(convolution(x)) + skips.pop()
            if level < len(self.decoder_tokens):
                x = self.decoder_tokens[level](x)
        return self.head(_upsample_relu(self.last(x)))


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels))


def _upsample_relu(x: Tensor) -> Tensor:
    return torch.relu(interpolate(x, scale_factor=2, mode="bilinear"))


def _initialise(module: nn.Module) -> None:
    """The publication's initialisation of the token levels; its plain convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
