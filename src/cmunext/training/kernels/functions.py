"""The kernels as functions that autograd differentiates.

Feature maps are channels_last tensors N x C x H x W in float32 or bfloat16, which are pixels x channels in memory; weights and statistics are
float32. Sums are float32 within some thousand numbers, those of a bottleneck's products within a slice of the map, and float64 beyond, in an
order that does not depend on the number of threads.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from cmunext.training.kernels.choice import pixels, takes_convolution, takes_depthwise
from cmunext.training.kernels.interface import Bottleneck, BottleneckGradients, Convolution, Norm


class TrainedNorm(torch.autograd.Function):
    """norm(gelu(x)), or relu(norm(x)), by the statistics of the batch: N x C x H x W -> the same shape."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, relu: bool, library: ctypes.CDLL
    ) -> Tensor:
        statistics = torch.empty(2, norm.num_features, dtype=torch.float32)
        output = _normed(x, norm, _norm(norm, weight, bias, statistics), relu, library)
        _count(norm)
        context.save_for_backward(x, weight, bias, statistics)
        context.norm, context.relu, context.library = norm, relu, library
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, statistics = context.saved_tensors
        given = given.to(x.dtype).contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        context.library.cmunext_norm_gradient(
            *(x.dtype == torch.bfloat16, context.relu, x.data_ptr(), given.data_ptr(), pixels(x)),
            *(_norm(context.norm, weight, bias, statistics), context.norm.num_features),
            *(of_x.data_ptr(), of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
        )
        return of_x, of_weight, of_bias, None, None, None


def fixed_norm(x: Tensor, norm: nn.BatchNorm2d, relu: bool, library: ctypes.CDLL) -> Tensor:
    """norm(gelu(x)), or relu(norm(x)), by the norm's running statistics: N x C x H x W -> the same shape."""
    assert norm.running_mean is not None and norm.running_var is not None
    statistics = torch.stack([norm.running_mean, (norm.running_var + norm.eps).rsqrt()])
    return _normed(x, norm, _norm(norm, norm.weight, norm.bias, statistics), relu, library)


def _normed(x: Tensor, norm: nn.BatchNorm2d, described: Norm, relu: bool, library: ctypes.CDLL) -> Tensor:
    """By the statistics of the batch, which are written to where `described` says, or of a norm that is not in training, by those there."""
    output = torch.empty_like(x, memory_format=torch.channels_last)
    library.cmunext_norm(
        *(x.dtype == torch.bfloat16, relu, not norm.training, x.data_ptr(), pixels(x), described),
        *(norm.num_features, output.data_ptr(), torch.get_num_threads()),
    )
    return output


class TrainedBottleneck(torch.autograd.Function):
    """project(norm(gelu(expand(x)))), by the statistics of the batch, in float32: N x C x H x W -> N x C' x H x W."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        project: Tensor,
        project_bias: Tensor,
        norm: nn.BatchNorm2d,
        library: ctypes.CDLL,
    ) -> Tensor:
        statistics = torch.empty(2, norm.num_features, dtype=torch.float32)
        parameters = [one.contiguous() for one in (expand, expand_bias, weight, bias, project, project_bias)]
        output = torch.empty((len(x), len(project), *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
        library.cmunext_bottleneck(
            *(x.data_ptr(), pixels(x), _bottleneck(norm, parameters, statistics), output.data_ptr(), torch.get_num_threads())
        )
        _count(norm)
        context.save_for_backward(x, statistics, *parameters)
        context.norm, context.library = norm, library
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, *parameters = context.saved_tensors
        given = given.contiguous(memory_format=torch.channels_last)
        of_x, gradients = torch.empty_like(x), [torch.empty_like(one) for one in parameters]
        expand, expand_bias, weight, bias, project, project_bias = (one.data_ptr() for one in gradients)
        context.library.cmunext_bottleneck_gradient(
            *(x.data_ptr(), given.data_ptr(), pixels(x), _bottleneck(context.norm, parameters, statistics), of_x.data_ptr()),
            *(BottleneckGradients(expand, expand_bias, project, project_bias, weight, bias), torch.get_num_threads()),
        )
        return of_x, *gradients, None, None


def trained_conv2d(
    library: ctypes.CDLL,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d`, with our gradient of the weights where the kernels take it."""
    if takes_depthwise(x, weight, stride, padding, dilation, groups):
        return TrainedDepthwise.apply(x, weight, bias, library)
    if takes_convolution(x, weight, stride, padding, dilation, groups):
        return TrainedConvolution.apply(x, weight, bias, groups, library)
    return conv2d(x, weight, bias, stride, padding, dilation, groups)


class TrainedConvolution(torch.autograd.Function):
    """PyTorch's 3 x 3 convolution with padding 1, whose weights' gradient is ours: N x C x H x W -> N x C' x H x W."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, library: ctypes.CDLL) -> Tensor:
        context.save_for_backward(x, weight)
        context.groups, context.library = groups, library
        return conv2d(x, weight, bias, padding=1, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(context: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        given = given.contiguous(memory_format=torch.channels_last)
        of_weight = torch.empty_like(weight, memory_format=torch.channels_last)
        of_bias = torch.empty(len(weight), dtype=torch.float32)
        count, channels, height, width = x.shape
        context.library.cmunext_convolution_gradient(
            *(x.data_ptr(), given.data_ptr(), Convolution(count, height, width, channels, len(weight), context.groups)),
            *(of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
        )
        of_x = _of_input(context, given, x, weight, 1, context.groups)
        return of_x, of_weight, of_bias if context.needs_input_grad[2] else None, None, None


class TrainedDepthwise(torch.autograd.Function):
    """PyTorch's depthwise convolution that keeps a map's size, whose weights' gradient is ours: N x C x H x W -> the same shape."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, library: ctypes.CDLL) -> Tensor:
        context.save_for_backward(x, weight)
        context.library = library
        return conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(context: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        given = given.to(x.dtype).contiguous(memory_format=torch.channels_last)
        of_weight, of_bias = torch.empty(weight.shape, dtype=torch.float32), torch.empty(len(weight), dtype=torch.float32)
        count, channels, height, width = x.shape
        context.library.cmunext_depthwise_gradient(
            *(x.dtype == torch.bfloat16, x.data_ptr(), given.data_ptr()),
            *(Convolution(count, height, width, channels, channels, channels), weight.shape[2]),
            *(of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
        )
        of_x = _of_input(context, given, x, weight, weight.shape[2] // 2, channels)
        return of_x, of_weight, of_bias if context.needs_input_grad[2] else None, None


def _of_input(context: Any, given: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor | None:
    """PyTorch's gradient of a convolution's input, where it is asked for."""
    if not context.needs_input_grad[0]:
        return None
    one, around, wanted = [1, 1], [padding, padding], [True, False, False]
    weight = weight.to(x.dtype)
    return torch.ops.aten.convolution_backward(given, x, weight, None, one, around, one, False, [0, 0], groups, wanted)[0]


def convolved_upsampling(x: Tensor, convolution: nn.Conv2d, library: ctypes.CDLL) -> Tensor:
    """A 3 x 3 convolution of the map upsampled by two, its nine products taken before: N x C x H x W -> N x C' x 2 H x 2 W."""
    weight = convolution.weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]  # C' x C x 3 x 3 -> (3 3 C') x C x 1 x 1
    assert convolution.bias is not None
    return UpsampledSum.apply(conv2d(x, weight), convolution.bias, library)


class UpsampledSum(torch.autograd.Function):
    """The products of nine taps upsampled by two, shifted and summed: N x (9 C) x H x W -> N x C x 2 H x 2 W."""

    @staticmethod
    def forward(context: Any, products: Tensor, bias: Tensor, library: ctypes.CDLL) -> Tensor:
        products = products.contiguous(memory_format=torch.channels_last)
        count, channels, (height, width) = len(products), len(bias), products.shape[2:]
        output = torch.empty((count, channels, 2 * height, 2 * width), dtype=products.dtype, memory_format=torch.channels_last)
        library.cmunext_upsampling(
            *(products.dtype == torch.bfloat16, products.data_ptr(), bias.data_ptr(), count, height, width, channels),
            *(output.data_ptr(), torch.get_num_threads()),
        )
        context.shape, context.format, context.library = products.shape, products.dtype, library
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        given = given.to(context.format).contiguous(memory_format=torch.channels_last)
        count, channels, height, width = context.shape
        of_products = torch.empty(context.shape, dtype=context.format, memory_format=torch.channels_last)
        of_bias = torch.empty(channels // 9, dtype=torch.float32)
        context.library.cmunext_upsampling_gradient(
            *(context.format == torch.bfloat16, given.data_ptr(), count, height, width, channels // 9),
            *(of_products.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
        )
        return of_products, of_bias, None


def _norm(norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor, statistics: Tensor) -> Norm:
    assert norm.running_mean is not None and norm.running_var is not None
    tensors = (weight, bias, statistics[0], statistics[1], norm.running_mean, norm.running_var)
    return Norm(*(tensor.data_ptr() for tensor in tensors), norm.eps, norm.momentum)


def _bottleneck(norm: nn.BatchNorm2d, parameters: list[Tensor], statistics: Tensor) -> Bottleneck:
    expand, expand_bias, weight, bias, project, project_bias = parameters
    addresses = (one.data_ptr() for one in (expand, expand_bias, project, project_bias))
    return Bottleneck(expand.shape[1], len(expand), len(project), *addresses, _norm(norm, weight, bias, statistics))


def _count(norm: nn.BatchNorm2d) -> None:
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
