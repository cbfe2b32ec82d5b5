"""MedT, the Medical Transformer: gated axial attention on the whole image, plain axial attention on patches of it.

Paper: Valanarasu et al., "Medical Transformer: Gated Axial-Attention for Medical Image Segmentation", MICCAI 2021,
arXiv 2102.10662 (equation 2 and Figure 2: gated axial attention; section 2.3: local-global training). Built as in Table 2 of
the CMUNeXt paper: 1,564,202 parameters at 256 x 256, of which 24 are gates and 35,553 are in convolutions that nothing uses.
(The published 1.37 M is what its counting tool sees.) Weights keep PyTorch's default initialisation but for the projections
and position tables, which are normal with variance 1 / inputs and 1 / channels per head.

The authors' build departs from the publication in two points. They are the default here, so that the numbers compare, and a
named argument corrects each:

- The local branch always sees 16 patches of 32 x 32 pixels. At 256 x 256 that is the top-left quarter of the image; elsewhere
  the sum of the branches is twice the global one. `cover_image=True` takes the publication's patches of a quarter of the
  height and width.
- The gates of the position terms keep their first values for ever, where the publication frees them after some epochs.
  `trainable_gates=True` trains them from the start.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cmunext.networks.blocks import image_size_pair, require_size

HEADS = 8
PATCH_GRID = 4  # the local branch sees 4 x 4 patches
PATCH_SIZE = 32
EXPANSION = 2


class Projection(nn.Conv1d):
    """Query, key and value of every position: B x C x L -> B x 2C' x L, normal with variance 1 / C at the start."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, 2 * out_channels, 1, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=sqrt(1 / self.in_channels))


class PlainAttention(nn.Module):
    """Multi-head attention along a line, without position terms: B x C x L -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.projection = Projection(channels, channels)
        self.projection_norm = nn.BatchNorm1d(2 * channels)
        self.similarity_norm = nn.BatchNorm2d(HEADS)
        self.output_norm = nn.BatchNorm1d(channels)
        self.head_channels = channels // HEADS

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query and key, B x heads x c/2 x L, and value, B x heads x c x L."""
        half = self.head_channels // 2
        heads = self.projection_norm(self.projection(x)).unflatten(1, (HEADS, -1))
        query, key, value = heads.split((half, half, self.head_channels), dim=2)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x)
        similarity = torch.softmax(self.similarity_norm(torch.einsum("bgci,bgcj->bgij", query, key)), dim=-1)
        output = torch.einsum("bgij,bgcj->bgci", similarity, value)
        return self.output_norm(output.flatten(1, 2))


class GatedAttention(PlainAttention):
    """The same with gated relative positions for query, key and value (equation 2): B x C x L -> the same shape.

    `span` is L, which the position tables fix. The gates weigh the query's, the key's and the value's position terms and the
    value itself; `trainable_gates` says whether they learn.
    """

    offset: Tensor

    def __init__(self, channels: int, span: int, trainable_gates: bool):
        super().__init__(channels)
        self.similarity_norm = nn.BatchNorm2d(3 * HEADS)
        self.output_norm = nn.BatchNorm1d(2 * channels)
        self.relative = nn.Parameter(torch.randn(2 * self.head_channels, 2 * span - 1) * sqrt(1 / self.head_channels))
        position = torch.arange(span)
        self.register_buffer("offset", position[:, None] - position + span - 1, persistent=False)  # L x L, row minus column

        def gate(value: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(value), requires_grad=trainable_gates)

        self.query_gate, self.key_gate = gate(0.1), gate(0.1)
        self.value_position_gate, self.value_gate = gate(0.1), gate(1.0)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x)
        half = self.head_channels // 2
        tables = self.relative[:, self.offset]  # 2c x L x L
        query_table, key_table, value_table = tables.split((half, half, self.head_channels))
        content = torch.einsum("bgci,bgcj->bgij", query, key)
        for_query = torch.einsum("bgci,cij->bgij", query, query_table) * self.query_gate
        for_key = torch.einsum("bgci,cij->bgij", key, key_table).mT * self.key_gate
        terms = self.similarity_norm(torch.cat((content, for_query, for_key), dim=1))
        similarity = torch.softmax(terms.unflatten(1, (3, HEADS)).sum(dim=1), dim=-1)

        output = torch.einsum("bgij,bgcj->bgci", similarity, value) * self.value_gate
        position = torch.einsum("bgij,cij->bgci", similarity, value_table) * self.value_position_gate
        # The norm sees the two terms of a channel side by side, then they are summed.
        pairs = self.output_norm(torch.stack((output, position), dim=3).flatten(1, 3))
        return pairs.unflatten(1, (-1, 2)).sum(dim=2)


def along_height(attention: nn.Module, x: Tensor) -> Tensor:
    """Apply `attention` (B x C x L -> the same) to every column of `x`, N x C x H x W."""
    batch = x.shape[0]
    columns = attention(x.permute(0, 3, 1, 2).flatten(0, 1))  # NCHW -> (NW)CH
    return columns.unflatten(0, (batch, -1)).permute(0, 2, 3, 1)  # (NW)CH -> NCHW


def along_width(attention: nn.Module, x: Tensor) -> Tensor:
    """Apply `attention` (B x C x L -> the same) to every row of `x`, N x C x H x W."""
    batch = x.shape[0]
    rows = attention(x.permute(0, 2, 1, 3).flatten(0, 1))  # NCHW -> (NH)CW
    return rows.unflatten(0, (batch, -1)).permute(0, 2, 1, 3)  # (NH)CW -> NCHW


class AxialBlock(nn.Module):
    """Bottleneck block with attention along columns, then rows: N x C x H x W -> N x 2*width x H/stride x W/stride.

    With `span` = (H, W) of its input the attention is gated and positional, with None it is plain.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        span: tuple[int, int] | None = None,
        trainable_gates: bool = False,
    ):
        super().__init__()
        out_channels = EXPANSION * width
        self.reduce = nn.Conv2d(in_channels, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        if span is None:
            self.unused = nn.Conv2d(width, width, 1)  # part of the authors' build and of its parameter count, never called
            self.height_attention: PlainAttention = PlainAttention(width)
            self.width_attention: PlainAttention = PlainAttention(width)
        else:
            self.height_attention = GatedAttention(width, span[0], trainable_gates)
            self.width_attention = GatedAttention(width, span[1], trainable_gates)
        self.pool = nn.AvgPool2d(2, stride=2) if stride == 2 else nn.Identity()
        self.expand = nn.Conv2d(width, out_channels, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.reduce_norm(self.reduce(x)))
        hidden = along_width(self.width_attention, along_height(self.height_attention, hidden))
        hidden = self.expand_norm(self.expand(torch.relu(self.pool(hidden))))
        return torch.relu(hidden + self.shortcut(x))


def stem(in_channels: int, width: int) -> nn.Sequential:
    """Three convolutions, the first of 7 x 7 and stride 2: N x in_channels x H x W -> N x width x H/2 x W/2."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def up(convolution: nn.Module, x: Tensor) -> Tensor:
    """Convolution, bilinear enlargement by two, ReLU."""
    return torch.relu(interpolate(convolution(x), scale_factor=2, mode="bilinear"))


class GlobalBranch(nn.Module):
    """Gated axial attention at 1/2 and 1/4 of the image: N x in_channels x H x W -> N x 16 x H x W."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], trainable_gates: bool):
        super().__init__()
        height, width = image_size
        half, quarter = (height // 2, width // 2), (height // 4, width // 4)
        self.stem = stem(in_channels, 8)
        self.layer1 = AxialBlock(8, 16, 1, half, trainable_gates)
        self.layer2 = nn.Sequential(AxialBlock(32, 32, 2, half, trainable_gates), AxialBlock(64, 32, 1, quarter, trainable_gates))
        self.decoder = nn.ModuleList((nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.layer1(self.stem(x))
        deep = self.layer2(shallow)
        return up(self.decoder[1], up(self.decoder[0], deep) + shallow)


class LocalBranch(nn.Module):
    """Plain axial attention at 1/2 to 1/16 of a patch: N x in_channels x P x Q -> N x 16 x P x Q, P and Q divisible by 32."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.stem = stem(in_channels, 64)
        self.layers = nn.ModuleList()
        channels = 64
        for width, blocks, stride in ((16, 1, 1), (32, 2, 2), (64, 4, 2), (128, 1, 2)):
            layer = nn.Sequential(AxialBlock(channels, width, stride))
            channels = EXPANSION * width
            layer.extend(AxialBlock(channels, width, 1) for _ in range(blocks - 1))
            self.layers.append(layer)
        # The first convolution halves the deepest map, so that doubling it meets the last skip at its own size.
        widths = (256, 256, 128, 64, 32, 16)
        self.decoder = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if index == 0 else 1, padding=1)
            for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for layer in self.layers:
            x = layer(x)
            skips.append(x)
        for convolution in self.decoder[:-1]:
            x = up(convolution, x) + skips.pop()
        return up(self.decoder[-1], x)


class MedT(nn.Module):
    """MedT: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    image_size : the height and width that the network is built for (one number means both): at least 128, divisible by 4
        (by 128 with `cover_image`).
    cover_image : patches of a quarter of the height and width, so that the local branch sees all of the image.
    trainable_gates : the gates of the attention learn.

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
        image_size: int | tuple[int, int] = 256,
        cover_image: bool = False,
        trainable_gates: bool = False,
    ):
        super().__init__()
        least = PATCH_GRID * PATCH_SIZE
        self.image_size = image_size_pair(image_size, least if cover_image else 4, minimum=least)
        self.patch = tuple(side // PATCH_GRID for side in self.image_size) if cover_image else (PATCH_SIZE, PATCH_SIZE)
        self.whole = GlobalBranch(in_channels, self.image_size, trainable_gates)
        self.local = LocalBranch(in_channels)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, num_classes, 1)
        self.unused = nn.Conv2d(16, 1, 1)  # part of the authors' build and of its parameter count, never called

    def forward(self, x: Tensor) -> Tensor:
        require_size(x, self.image_size)
        whole = self.whole(x)
        local = self._on_patches(x)
        height, width = local.shape[-2:]
        # Where no patch lies, the global features stand in for the local ones.
        local = torch.cat((local, whole[..., :height, width:]), dim=3)
        local = torch.cat((local, whole[..., height:, :]), dim=2)
        return self.head(torch.relu(self.last(whole + local)))

    def _on_patches(self, x: Tensor) -> Tensor:
        """The local branch on the grid of patches from the top left: N x C x H x W -> N x 16 x 4P x 4Q."""
        height, width = self.patch
        rows = [x[..., top : top + height, :] for top in range(0, PATCH_GRID * height, height)]
        patches = [row[..., left : left + width] for row in rows for left in range(0, PATCH_GRID * width, width)]
        if self.training:  # every patch has its own batch statistics, as in the authors' loop
            features = torch.stack([self.local(patch) for patch in patches])
        else:
            features = self.local(torch.cat(patches)).unflatten(0, (len(patches), -1))
        grid = features.unflatten(0, (PATCH_GRID, PATCH_GRID))
        return grid.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)  # (row)(column)NCPQ -> NC(row P)(column Q)
