"""TransUNet: a ResNet-50 with weight standardisation, a ViT-B on its deepest map, and a decoder with the ResNet's skips.

Papers: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", arXiv 2102.04306 (Figure 1:
the network; equations 1 to 3: the transformer layer); Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv
2010.11929 (R50+ViT-B/16); Kolesnikov et al., "Big Transfer", ECCV 2020, arXiv 1912.11370 (weight standardisation, GroupNorm).

This is the build of Table 2 of the CMUNeXt paper (105,322,001 parameters at 256 x 256, of which 196,608 are positions). It
departs from the publication in one point: the weights pretrained on ImageNet-21k are not loaded. `pretrained=` loads them from
a local file, as the publication did. The published 38.52 GFLOPs of Table 2 come from another counter than the other rows.
"""

from collections.abc import Mapping
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from cmunext.errors import InputError
from cmunext.networks.blocks import image_size_pair, require_size

PATCH = 16  # pixels of the image to a token, each way
RESNET_BLOCKS = ((256, 3), (512, 4), (1024, 9))  # (channels, units) of each block
WIDTH, DEPTH, HEADS, MLP_WIDTH, DROPOUT = 768, 12, 12, 3072, 0.1  # ViT-B
DECODER_WIDTHS = (512, 256, 128, 64, 16)
SKIP_CHANNELS = (512, 256, 64, 0)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose every filter is brought to mean 0 and variance 1 first (biased variance, epsilon 1e-5); no bias."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return nn.functional.conv2d(x, weight, None, self.stride, self.padding)


class ResidualUnit(nn.Module):
    """Bottleneck unit, normalised by groups and activated after the sum: N x C x H x W -> N x C' x H/stride x W/stride.

    Names as in the public weight files (`block1/unit1/conv1/kernel`, `.../gn1/scale`, ...).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        middle = out_channels // 4
        self.conv1 = StandardizedConv2d(in_channels, middle, 1, bias=False)
        self.gn1 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv2 = StandardizedConv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.gn2 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv3 = StandardizedConv2d(middle, out_channels, 1, bias=False)
        self.gn3 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.projected = stride != 1 or in_channels != out_channels
        if self.projected:
            self.conv_proj = StandardizedConv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.gn_proj = nn.GroupNorm(out_channels, out_channels)  # one group a channel, epsilon 1e-5

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.gn_proj(self.conv_proj(x)) if self.projected else x
        hidden = torch.relu(self.gn1(self.conv1(x)))
        hidden = torch.relu(self.gn2(self.conv2(hidden)))
        return torch.relu(shortcut + self.gn3(self.conv3(hidden)))


class ResNet(nn.Module):
    """ResNet-50 up to 1/16: N x in_channels x H x W -> N x 1024 x H/16 x W/16, and the skips of 1/8, 1/4 and 1/2."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv_root = StandardizedConv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.gn_root = nn.GroupNorm(32, 64, eps=1e-6)
        self.pool = nn.MaxPool2d(3, stride=2)  # without padding: the maps of 1/4 lack one row and column
        blocks, channels = [], 64
        for index, (out, units) in enumerate(RESNET_BLOCKS):
            first = ResidualUnit(channels, out, stride=1 if index == 0 else 2)
            blocks.append(nn.Sequential(first, *(ResidualUnit(out, out, stride=1) for _ in range(units - 1))))
            channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        root = torch.relu(self.gn_root(self.conv_root(x)))
        quarter = self.blocks[0](self.pool(root))
        eighth = self.blocks[1](quarter)
        return self.blocks[2](eighth), [eighth, pad(quarter, (0, 1, 0, 1)), root]


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections: N x L x C -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # N L (h d) -> N h L d
            for project in (self.query, self.key, self.value)
        )
        attention = self.softmax(query @ key.mT / (WIDTH // HEADS) ** 0.5)
        return self.out((attention @ value).transpose(1, 2).flatten(2))  # N h L d -> N L (h d)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer (equations 2 and 3): N x L x C -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = SelfAttention()
        self.mlp_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        expand, project = nn.Linear(WIDTH, MLP_WIDTH), nn.Linear(MLP_WIDTH, WIDTH)
        self.mlp = nn.Sequential(expand, nn.GELU(), nn.Dropout(DROPOUT), project, nn.Dropout(DROPOUT))
        for layer in (expand, project):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3 x 3 convolution without bias, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())


class TransUNet(nn.Module):
    """TransUNet (R50-ViT-B/16): N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask). A network built for three
        channels also takes grey input, which it repeats.
    image_size : the height and width that the network is built for (one number means both), divisible by 16.
    pretrained : a local file with the ImageNet-21k weights of R50+ViT-B_16 (Google's .npz); None trains from scratch.
        They are for three channels: filters that are standardised one by one cannot be summed into grey ones.

    Raises
    ------
    ValueError : when `image_size` does not divide by 16; at the forward pass, when the input is not of that size.
    InputError : when `pretrained` is not such a file.
    """

    size_divisor = None  # the size is fixed: image_size

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        image_size: int | tuple[int, int] = 256,
        pretrained: str | PathLike[str] | None = None,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.image_size = image_size_pair(image_size, PATCH)
        self.grid = self.image_size[0] // PATCH, self.image_size[1] // PATCH
        self.resnet = ResNet(in_channels)
        self.embed = nn.Conv2d(RESNET_BLOCKS[-1][0], WIDTH, 1)
        self.position = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.transformer = nn.Sequential(*(TransformerLayer() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.bottleneck = conv_norm_relu(WIDTH, DECODER_WIDTHS[0])
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before + skip, after), conv_norm_relu(after, after))
            for before, skip, after in zip(DECODER_WIDTHS[:-1], SKIP_CHANNELS, DECODER_WIDTHS[1:], strict=True)
        )
        self.head = nn.Conv2d(DECODER_WIDTHS[-1], num_classes, 3, padding=1)
        if pretrained is not None:
            self._load_npz(pretrained)

    def forward(self, x: Tensor) -> Tensor:
        require_size(x, self.image_size)
        if x.shape[1] == 1 and self.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        x, skips = self.resnet(x)
        tokens = self.embed(x).flatten(2).mT  # NCHW -> N(HW)C
        tokens = self.norm(self.transformer(self.dropout(tokens + self.position)))
        x = self.bottleneck(tokens.mT.unflatten(2, self.grid))  # N(HW)C -> NCHW
        for level, stage in enumerate(self.decoder):
            x = self.upsample(x)
            if level < len(skips):
                x = torch.cat((x, skips[level]), dim=1)
            x = stage(x)
        return self.head(x)

    def _load_npz(self, path: str | PathLike[str]) -> None:
        if self.in_channels != 3:
            raise InputError(
                f"pretrained weights are for 3 input channels, not {self.in_channels}; "
                "build the network with in_channels=3, which also takes grey images"
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                state = encoder_state(arrays, self.grid)
            missing, unexpected = self.load_state_dict(state, strict=False)
        except OSError:
            raise
        except Exception as error:  # NumPy, zip, key and shape errors all mean that the file is another one
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path} does not hold R50+ViT-B_16 weights ({reason}); give Google's .npz file") from error
        untouched = {name.split(".")[0] for name in missing}
        assert not unexpected and untouched <= {"bottleneck", "decoder", "head"}, (missing, unexpected)


def encoder_state(arrays: Mapping[str, np.ndarray], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Google's R50+ViT-B_16 arrays as the encoder part of TransUNet's `state_dict`.

    Their convolutions are H x W x in x out, their linear layers in x out, with the heads as an axis of their own. The class
    token and the classifier are left out; the position table is resampled (bilinear) to `grid` = (rows, columns) of patches.
    """
    state: dict[str, Tensor] = {}

    def take(key: str) -> Tensor:
        return torch.from_numpy(np.array(arrays[key], dtype=np.float32))

    def convolution(ours: str, theirs: str) -> None:
        state[f"{ours}.weight"] = take(f"{theirs}/kernel").permute(3, 2, 0, 1)  # HWIO -> OIHW

    def norm(ours: str, theirs: str) -> None:
        state[f"{ours}.weight"] = take(f"{theirs}/scale").flatten()
        state[f"{ours}.bias"] = take(f"{theirs}/bias").flatten()

    def linear(ours: str, theirs: str, inputs: int) -> None:
        state[f"{ours}.weight"] = take(f"{theirs}/kernel").reshape(inputs, -1).T
        state[f"{ours}.bias"] = take(f"{theirs}/bias").flatten()

    convolution("resnet.conv_root", "conv_root")
    norm("resnet.gn_root", "gn_root")
    for block, (_, units) in enumerate(RESNET_BLOCKS):
        for unit in range(units):
            ours, theirs = f"resnet.blocks.{block}.{unit}", f"block{block + 1}/unit{unit + 1}"
            for part in ("1", "2", "3", "_proj") if unit == 0 else ("1", "2", "3"):
                convolution(f"{ours}.conv{part}", f"{theirs}/conv{part}")
                norm(f"{ours}.gn{part}", f"{theirs}/gn{part}")
    convolution("embed", "embedding")
    state["embed.bias"] = take("embedding/bias")

    table = take("Transformer/posembed_input/pos_embedding")[0, 1:]  # the first row is the class token's
    side = round(len(table) ** 0.5)
    table = table.T.reshape(1, WIDTH, side, side)
    state["position"] = interpolate(table, size=grid, mode="bilinear", align_corners=True).flatten(2).mT
    for index in range(DEPTH):
        ours, theirs = f"transformer.{index}", f"Transformer/encoderblock_{index}"
        norm(f"{ours}.attention_norm", f"{theirs}/LayerNorm_0")
        norm(f"{ours}.mlp_norm", f"{theirs}/LayerNorm_2")
        for part in ("query", "key", "value", "out"):
            linear(f"{ours}.attention.{part}", f"{theirs}/MultiHeadDotProductAttention_1/{part}", WIDTH)
        linear(f"{ours}.mlp.0", f"{theirs}/MlpBlock_3/Dense_0", WIDTH)
        linear(f"{ours}.mlp.3", f"{theirs}/MlpBlock_3/Dense_1", MLP_WIDTH)
    norm("norm", "Transformer/encoder_norm")
    return state
