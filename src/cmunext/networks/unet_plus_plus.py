"""U-Net++: nested skip connections between a ResNet-34 encoder and every level above it.

Papers: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018, arXiv 1807.10165
(Figure 1a and equation 1: the nodes; section 3.2: the averaged outputs); He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016, arXiv 1512.03385 (Table 1: ResNet-34).

This is the build of Table 2 of the CMUNeXt paper (26,904,137 parameters). It departs from the U-Net++ publication: a ResNet-34
trunk that starts at half the input's size replaces the plain encoder, nodes have three convolutions, and the four outputs are
summed with learned weights (at half size; the sum is then enlarged) instead of supervised one by one. The authors' build trains
from scratch, the trunk with ResNet's initialisation (He, fan-out) and the rest with PyTorch's default; `pretrained=` takes a
local ImageNet file for the trunk.

    node      X00  X01  X02  X03  X04  X10  X11  X12  X13  X20  X21  X22  X30  X31  X40     (Xij: level i, column j)
    channels   64   64   64  128  256   64   64  128  256  128  128  256  256  256  512
"""

from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cmunext.errors import InputError
from cmunext.networks.blocks import require_divisible

# Rows by level, then columns 1, 2, ...; column 0 is the trunk's.
NODE_CHANNELS = ((64, 64, 128, 256), (64, 128, 256), (128, 256), (256,))
TRUNK_CHANNELS = (64, 64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual: N x C x H x W -> N x C' x H/stride x W/stride. Names as in torchvision's files."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class ResNet34Trunk(nn.Module):
    """ResNet-34 without its classifier: N x in_channels x H x W -> five maps at 1/2, 1/4, 1/8, 1/16, 1/32.

    Parameters have the names of torchvision's files, so such a file loads as it is.
    """

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(64, 64, blocks=3, stride=1)
        self.layer2 = self._layer(64, 128, blocks=4, stride=2)
        self.layer3 = self._layer(128, 256, blocks=6, stride=2)
        self.layer4 = self._layer(256, 512, blocks=3, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _layer(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Sequential:
        rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [torch.relu(self.bn1(self.conv1(x)))]
        maps.append(self.layer1(self.maxpool(maps[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def load_file(self, path: str | PathLike[str]) -> None:
        """Load a ResNet-34 `state_dict` in torchvision's format (.pth), its classifier left out.

        Files are for three channels. A grey network takes the sum of the three filters, which gives what the colour network
        gives on a grey image; other numbers of channels are refused.

        Raises
        ------
        InputError : when the file is no such state_dict, or the network's input is neither grey nor of three channels.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
            channels = self.conv1.in_channels
            if channels == 1:
                state["conv1.weight"] = state["conv1.weight"].sum(dim=1, keepdim=True)
            self.load_state_dict(state)
        except OSError:
            raise
        except Exception as error:  # torch.load has no error type of its own: pickle, zip, key and shape errors all mean this
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path} does not hold ResNet-34 weights for {self.conv1.in_channels} channels ({reason}); "
                "give a torchvision resnet34 state_dict, and a network of 1 or 3 input channels"
            ) from error


class Node(nn.Sequential):
    """Three 3 x 3 convolutions, each with BatchNorm and ReLU, the first two at half the width."""

    def __init__(self, in_channels: int, out_channels: int):
        layers: list[nn.Module] = []
        widths = (in_channels, out_channels // 2, out_channels // 2, out_channels)
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class UNetPlusPlus(nn.Module):
    """U-Net++ on ResNet-34: N x in_channels x H x W -> logits N x num_classes x H x W.

    Parameters
    ----------
    in_channels, num_classes : channels of the image, and of the logits (1 for a binary mask).
    pretrained : a local file with ImageNet weights of ResNet-34 (torchvision's state_dict, .pth); None trains from scratch.

    Raises
    ------
    InputError : when `pretrained` is not such a file.
    ValueError : at the forward pass, when height or width do not divide by 32.
    """

    size_divisor = 32

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, pretrained: str | PathLike[str] | None = None):
        super().__init__()
        self.trunk = ResNet34Trunk(in_channels)
        if pretrained is not None:
            self.trunk.load_file(pretrained)
        self.nodes = nn.ModuleDict()
        rows = [[trunk] for trunk in TRUNK_CHANNELS]
        for level, column in self._order():
            out = NODE_CHANNELS[level][column - 1]
            self.nodes[f"{level}{column}"] = Node(sum(rows[level]) + rows[level + 1][column - 1], out)
            rows[level].append(out)
        self.heads = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in NODE_CHANNELS[0])
        self.mix = nn.Parameter(torch.ones(5))  # one weight a column; that of column 0, which has no head, stays unused

    @staticmethod
    def _order() -> list[tuple[int, int]]:
        """(level, column) of every node, column by column: each needs only what stands before it."""
        return [(level, column) for column in (1, 2, 3, 4) for level in range(5 - column)]

    def forward(self, x: Tensor) -> Tensor:
        require_divisible(x, self.size_divisor)
        rows = [[feature] for feature in self.trunk(x)]
        for level, column in self._order():
            below = interpolate(rows[level + 1][column - 1], scale_factor=2, mode="nearest")
            rows[level].append(self.nodes[f"{level}{column}"](torch.cat((*rows[level], below), dim=1)))
        logits = sum(weight * head(node) for weight, head, node in zip(self.mix[1:], self.heads, rows[0][1:], strict=True))
        return interpolate(logits, size=x.shape[-2:], mode="bilinear")
