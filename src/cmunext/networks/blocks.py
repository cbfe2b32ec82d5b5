"""Layers that two or more networks share. Each is one line of a figure in its paper; all keep height and width unless said."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.overrides import handle_torch_function, has_torch_function_unary

from cmunext.errors import InputError, UsageError

# Four groups of layers that a `TorchFunctionMode` may compute its own way, as one, like any function of PyTorch; training on a CPU does.


def relu_of_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """relu(norm(x)): N x C x H x W -> the same shape."""
    if has_torch_function_unary(x):
        return handle_torch_function(relu_of_norm, (x,), x, norm)
    return torch.relu(norm(x))


def norm_of_gelu(x: Tensor, norm: nn.Module) -> Tensor:
    """norm(gelu(x)): N x C x H x W -> the same shape."""
    if has_torch_function_unary(x):
        return handle_torch_function(norm_of_gelu, (x,), x, norm)
    return norm(gelu(x))


def bottleneck(x: Tensor, expand: nn.Conv2d, norm: nn.Module, project: nn.Conv2d) -> Tensor:
    """project(norm(gelu(expand(x)))), an inverted bottleneck up to its last activation: N x C x H x W -> N x C' x H x W."""
    if has_torch_function_unary(x):
        return handle_torch_function(bottleneck, (x,), x, expand, norm, project)
    return project(norm_of_gelu(expand(x), norm))


def convolved_upsampling(x: Tensor, upsample: nn.Upsample, convolution: nn.Conv2d) -> Tensor:
    """convolution(upsample(x)): N x C x H x W -> N x C' x 2H x 2W, or as `upsample` has it."""
    if has_torch_function_unary(x):
        return handle_torch_function(convolved_upsampling, (x,), x, upsample, convolution)
    return convolution(upsample(x))


class ConvNormReLU(nn.Module):
    """k x k convolution with padding k // 2, BatchNorm, ReLU: N x C x H x W -> N x C' x H x W."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return relu_of_norm(self.conv(x), self.norm)


class DoubleConv(nn.Sequential):
    """Two `ConvNormReLU` in a row, the stage of U-Net."""

    def __init__(self, in_channels: int, out_channels: int, middle_channels: int | None = None, *, bias: bool = True):
        middle = middle_channels or out_channels
        super().__init__(
            ConvNormReLU(in_channels, middle, bias=bias),
            ConvNormReLU(middle, out_channels, bias=bias),
        )


class UpConv(nn.Module):
    """Upsample by two, then `ConvNormReLU`: N x C x H x W -> N x C' x 2H x 2W.

    `mode` is "bilinear" (with `align_corners` as given) or "nearest".
    """

    def __init__(self, in_channels: int, out_channels: int, *, mode: str = "bilinear", align_corners: bool = False):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode=mode, align_corners=align_corners if mode == "bilinear" else None)
        self.conv = ConvNormReLU(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return relu_of_norm(convolved_upsampling(x, self.upsample, self.conv.conv), self.conv.norm)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, zero each sample with probability `rate` and scale the others by 1 / (1 - rate).

    Meant for a residual branch; any shape with the batch first. In evaluation it does nothing.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        kept = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
        return x * (kept / keep)


def require_divisible(x: Tensor, divisor: int, *, minimum: int = 0) -> None:
    """Raise InputError (a ValueError), naming the nearest size that works, unless height and width of `x` (N x C x H x W) divide by `divisor`.

    `minimum`, a multiple of `divisor`, is the least side that the network can take, where that is more than `divisor`.
    """
    height, width = x.shape[-2:]
    least = max(divisor, minimum)
    if height % divisor or width % divisor or height < least or width < least:
        nearest = tuple(max(least, round(side / divisor) * divisor) for side in (height, width))
        padded = tuple(max(least, -(-side // divisor) * divisor) for side in (height, width))
        at_least = f" and be at least {minimum}" if minimum > divisor else ""
        raise InputError(
            f"input of {height} x {width} pixels does not fit: height and width must divide by {divisor}{at_least}; "
            f"the nearest size that works is {nearest[0]} x {nearest[1]} (or pad to {padded[0]} x {padded[1]})"
        )


def require_size(x: Tensor, size: tuple[int, int]) -> None:
    """Raise InputError (a ValueError) unless `x` (N x C x H x W) has exactly the height and width that the network was built for."""
    height, width = x.shape[-2:]
    if (height, width) != size:
        raise InputError(
            f"input of {height} x {width} pixels does not fit: this network was built for one size; the nearest size that works is "
            f"{size[0]} x {size[1]} (or build it with image_size=({height}, {width}))"
        )


def image_size_pair(image_size: int | tuple[int, int], divisor: int, *, minimum: int = 0) -> tuple[int, int]:
    """`image_size` as (height, width); UsageError (a ValueError), naming the nearest that works, unless both divide by `divisor`.

    `minimum`, a multiple of `divisor`, is the least side that works, where that is more than `divisor`.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    least = max(divisor, minimum)
    if len(size) != 2 or any(side % divisor or side < least for side in size):
        nearest = " x ".join(str(max(least, round(side / divisor) * divisor)) for side in size)
        at_least = f" and be at least {minimum}" if minimum > divisor else ""
        raise UsageError(
            f"image_size {image_size} does not fit: height and width must divide by {divisor}{at_least}; "
            f"the nearest size that works is {nearest}"
        )
    return size[0], size[1]
