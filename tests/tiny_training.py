"""Networks small enough to be trained in a test, by the name "tests.tiny_training:NAME"."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


def three_layers(in_channels: int, num_classes: int) -> nn.Module:
    """A convolution, a norm, a convolution: finds what is bright."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 3, padding=1)
    )


def one_layer(in_channels: int, num_classes: int) -> nn.Module:
    """A single convolution."""
    return nn.Conv2d(in_channels, num_classes, 3, padding=1)


def one_layer_from(in_channels: int, num_classes: int, *, pretrained: str | None = None) -> nn.Module:
    """A single convolution that starts from the weights in a file."""
    network = one_layer(in_channels, num_classes)
    if pretrained:
        network.load_state_dict(torch.load(pretrained, weights_only=True))
    return network


class Ruined(nn.Module):
    """Its loss is finite and its gradient is not."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 1)
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x K x H x W."""
        return self.layer(x) + self.nothing.sqrt()


def failing(in_channels: int, num_classes: int) -> nn.Module:
    """Cannot be built."""
    raise RuntimeError("no such luck")


class Dying(nn.Module):
    """Takes its process with it at the first batch, as a process that is out of memory is taken."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x K x H x W, while only shapes are asked for."""
        if x.device.type != "meta":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)


class DyingOnce(Dying):
    """Takes its process with it when it sees its first batch, unless the file named by $TINY_DIED says that it has done so before."""

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x K x H x W."""
        marker = Path(os.environ["TINY_DIED"])
        if marker.exists():
            return self.layer(x)
        if x.device.type != "meta":
            marker.touch()
        return super().forward(x)
