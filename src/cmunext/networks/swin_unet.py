"""Swin-Unet: a U-Net of shifted-window transformer blocks only.

Papers: Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", ECCV Workshops 2022, arXiv 2105.05537
(Figure 1: the network; section 3.4: patch expanding); Liu et al., "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows", ICCV 2021, arXiv 2103.14030 (section 3.2: shifted windows; equation 4: relative position bias).

Size: Swin-T (96 channels, heads 3 6 12 24), with two blocks at every level of encoder and decoder: 27,168,132 parameters. The
27.14 M of Table 2 of the CMUNeXt paper are what its counting tool sees, without the 22,308 of the position tables. It runs at
224 x 224, where windows of 7 tile every level (the other networks of that table run at 256), and it departs from the publication
in that no ImageNet weights are loaded. Linear layers and position tables start truncated-normal, standard deviation 0.02.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmunext.networks.blocks import DropPath, image_size_pair, require_size

PATCH = 4


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for every relative position: B x window^2 x C -> the same shape."""

    bias_index: Tensor

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.softmax = nn.Softmax(dim=-1)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        distance_down = row[:, None] - row + window - 1
        distance_right = column[:, None] - column + window - 1
        index = distance_down * (2 * window - 1) + distance_right  # of query (row) and key (column) in the table
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`mask`, windows x window^2 x window^2, is added to the scores; B must then be a multiple of its first dimension."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B h L d
        scores = (query * self.scale) @ key.mT + self.bias_table[self.bias_index].permute(2, 0, 1)
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        x = self.softmax(scores) @ value
        return self.project(x.transpose(1, 2).flatten(2))  # B h L d -> B L (h d)


class SwinBlock(nn.Module):
    """Pre-norm transformer block with attention in windows that `shift` displaces: N x H x W x C -> the same shape."""

    mask: Tensor | None

    def __init__(self, channels: int, heads: int, size: tuple[int, int], window: int, shift: int, drop_path: float):
        super().__init__()
        self.window = window
        self.shift = 0 if min(size) <= window else shift  # one window has no neighbours to exchange with
        self.windows = size[0] // window, size[1] // window
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.drop_path = DropPath(drop_path)
        mask = self._mask(size) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def _mask(self, size: tuple[int, int]) -> Tensor:
        """Windows x window^2 x window^2: -100 between pixels that only the cyclic shift made neighbours, else 0."""
        parts = []
        for side in size:
            position = torch.arange(side)
            parts.append((position >= side - self.window).long() + (position >= side - self.shift).long())
        region = (3 * parts[0][:, None] + parts[1])[None, ..., None]
        region = self._to_windows(region)[..., 0]
        return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)

    def _to_windows(self, x: Tensor) -> Tensor:
        rows, columns = self.windows
        x = x.unflatten(2, (columns, self.window)).unflatten(1, (rows, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)  # N r w c w C -> (N r c)(w w)C

    def _from_windows(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.window, self.window)).unflatten(0, (-1, *self.windows))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # N r c w w C -> N(r w)(c w)C

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.attention_norm(x)
        if self.shift:
            hidden = torch.roll(hidden, (-self.shift, -self.shift), dims=(1, 2))
        hidden = self._from_windows(self.attention(self._to_windows(hidden), self.mask))
        if self.shift:
            hidden = torch.roll(hidden, (self.shift, self.shift), dims=(1, 2))
        x = x + self.drop_path(hidden)
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class PatchMerging(nn.Module):
    """2 x 2 neighbours to one token of twice the channels: N x H x W x C -> N x H/2 x W/2 x 2C."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[:, 0::2], x[:, 1::2]
        neighbours = torch.cat((even[:, :, 0::2], odd[:, :, 0::2], even[:, :, 1::2], odd[:, :, 1::2]), dim=-1)
        return self.reduce(self.norm(neighbours))


class PatchExpanding(nn.Module):
    """One token to `scale` x `scale` of `out_channels`: N x H x W x C -> N x scale*H x scale*W x out_channels."""

    def __init__(self, channels: int, out_channels: int, scale: int):
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(channels, scale * scale * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x).unflatten(-1, (self.scale, self.scale, -1))
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)  # N H W a b C -> N(H a)(W b)C
        return self.norm(x)


class SwinUNet(nn.Module):
    """Swin-Unet: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    image_size : the height and width that the network is built for (one number means both), divisible by 32 * window.
    width : channels of the first level; each of the next three has twice as many.
    depths, heads : blocks and attention heads of the four levels, which run at 1/4, 1/8, 1/16 and 1/32 of the input. The decoder
        has as many at each level.
    window : side of the attention windows (8 fits 256 x 256).
    drop_path : rate of stochastic depth at the deepest block; it grows evenly from 0 at the first.

    Raises
    ------
    ValueError : when `image_size` does not fit; at the forward pass, when the input is not of that size.
    """

    size_divisor = None  # the size is fixed: image_size

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        image_size: int | tuple[int, int] = 224,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.2,
    ):
        super().__init__()
        self.image_size = image_size_pair(image_size, PATCH * 2 ** (len(depths) - 1) * window)
        rates = [drop_path * block / (sum(depths) - 1) for block in range(sum(depths))]

        def stage(level: int) -> nn.Sequential:
            size = tuple(side // (PATCH * 2**level) for side in self.image_size)
            first = sum(depths[:level])
            return nn.Sequential(
                *(
                    SwinBlock(width * 2**level, heads[level], size, window, (block % 2) * (window // 2), rates[first + block])
                    for block in range(depths[level])
                )
            )

        deepest = len(depths) - 1
        self.embed = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)
        self.embed_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(stage(level) for level in range(deepest + 1))
        self.merge = nn.ModuleList(PatchMerging(width * 2**level) for level in range(deepest))
        self.bottleneck_norm = nn.LayerNorm(width * 2**deepest)

        shallower = range(deepest - 1, -1, -1)
        channels = [width * 2**level for level in shallower]
        self.expand = nn.ModuleList(PatchExpanding(2 * own, own, 2) for own in channels)
        self.fuse = nn.ModuleList(nn.Linear(2 * own, own) for own in channels)
        self.decoder = nn.ModuleList(stage(level) for level in shallower)
        self.decoder_norm = nn.LayerNorm(width)
        self.expand_last = PatchExpanding(width, width, PATCH)
        self.head = nn.Conv2d(width, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        require_size(x, self.image_size)
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))  # NCHW -> NHWC
        skips = []  # the tokens as they enter each level
        for stage, merge in zip(self.encoder[:-1], self.merge, strict=True):
            skips.append(x)
            x = merge(stage(x))
        x = self.bottleneck_norm(self.encoder[-1](x))
        for expand, fuse, stage in zip(self.expand, self.fuse, self.decoder, strict=True):
            x = stage(fuse(torch.cat((expand(x), skips.pop()), dim=-1)))
        x = self.expand_last(self.decoder_norm(x))
        return self.head(x.permute(0, 3, 1, 2))  # NHWC -> NCHW
