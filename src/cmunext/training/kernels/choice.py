"""When a layer can be computed by the kernels, and is faster by them.

Feature maps are channels_last tensors N x C x H x W in float32 or bfloat16.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

FORMATS = (torch.float32, torch.bfloat16)
NARROWEST = 8  # channels that a vector of the bottleneck holds
DEPTHWISE = (5, 7, 9)  # widths of a depthwise kernel; for 3 PyTorch is as fast
NARROWEST_MAP = 32  # pixels across, from which on our gradient of a convolution's weights is faster than PyTorch's
# Channels in the middle of a bottleneck, up to which computing them again is faster than keeping them, in float32. In bfloat16, where PyTorch's
# convolutions are faster and ours are not, it never is (docs/training-speed.md).
WIDEST = 128


def takes_norm(library: ctypes.CDLL, x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the kernels compute this BatchNorm of this map: one that is trained, or one that is fixed where no gradient is asked for."""
    return (
        _takes(x, norm)
        and norm.training == torch.is_grad_enabled()
        and x.shape[1] == norm.num_features
        and pixels(x) % library.cmunext_norm_pixels(x.shape[1]) == 0
    )


def takes_bottleneck(x: Tensor, expand: nn.Conv2d, norm: nn.BatchNorm2d, project: nn.Conv2d) -> bool:
    """Whether the kernels compute this bottleneck of this map, which is trained."""
    convolutions = (expand, project)
    return (
        _takes(x, norm)
        and norm.training
        and torch.is_grad_enabled()
        and _as_convolved(x)
        and x.dtype == torch.float32
        and x.shape[1] == expand.in_channels
        and expand.out_channels == norm.num_features == project.in_channels <= WIDEST
        and all(
            one.weight.shape[2:] == (1, 1) and one.bias is not None and one.bias.dtype == torch.float32 for one in convolutions
        )
        and all(one.stride == (1, 1) and one.padding == (0, 0) and one.groups == 1 for one in convolutions)
        and all(one.in_channels % NARROWEST == 0 and one.out_channels % NARROWEST == 0 for one in convolutions)
    )


def takes_upsampling(x: Tensor, upsample: nn.Upsample, convolution: nn.Conv2d) -> bool:
    """Whether the kernels upsample this map for this convolution."""
    return (
        _is_map(x)
        and _as_convolved(x)
        and (upsample.mode, upsample.size, upsample.scale_factor) == ("bilinear", None, 2.0)
        and not upsample.align_corners
        and convolution.weight.dtype == torch.float32
        and convolution.weight.shape[2:] == (3, 3)
        and (convolution.stride, convolution.padding, convolution.dilation) == ((1, 1), (1, 1), (1, 1))
        and (convolution.groups, convolution.padding_mode) == (1, "zeros")
        and convolution.bias is not None
        and convolution.bias.dtype == torch.float32
        and convolution.out_channels % NARROWEST == 0
    )


def takes_convolution(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether the kernels compute the gradient of the weights of this convolution; arguments as `conv2d`'s."""
    return (
        _weights_are_trained(x, weight)
        and x.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and all(given in (1, (1, 1), [1, 1]) for given in (stride, padding, dilation))
        and weight.shape[1] % NARROWEST == weight.shape[0] // groups % NARROWEST == 0
        and x.shape[3] >= NARROWEST_MAP
    )


def takes_depthwise(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether the kernels compute the gradient of the weights of this depthwise convolution; arguments as `conv2d`'s."""
    kernel = weight.shape[2]
    return (
        _weights_are_trained(x, weight)
        and x.shape[1] == len(weight) == groups
        and weight.shape[1:] == (1, kernel, kernel)
        and kernel in DEPTHWISE
        and all(given in (1, (1, 1), [1, 1]) for given in (stride, dilation))
        and padding in (kernel // 2, (kernel // 2,) * 2, [kernel // 2] * 2)
        and groups % NARROWEST == 0
    )


def _weights_are_trained(x: Tensor, weight: Tensor) -> bool:
    return _is_map(x) and _as_convolved(x) and weight.dtype == torch.float32 and weight.requires_grad and torch.is_grad_enabled()


def _takes(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.weight is not None
        and norm.weight.dtype == torch.float32
        and _is_map(x)
        and pixels(x) > 1
    )


def _as_convolved(x: Tensor) -> bool:
    """Whether PyTorch's convolution of this map would compute, and give, its very format."""
    return x.dtype == (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)


def _is_map(x: Tensor) -> bool:
    return x.dtype in FORMATS and x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def pixels(x: Tensor) -> int:
    """Of all images of a map N x C x H x W."""
    return x.numel() // x.shape[1]
