"""The kernels as functions that autograd differentiates, and when a layer can be computed by them.

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

FORMATS = (torch.float32, torch.bfloat16)
NARROWEST = 8  # channels that a vector of the bottleneck holds
DEPTHWISE = (5, 7, 9)  # widths of a depthwise kernel; for 3 PyTorch is as fast
NARROWEST_MAP = 32  # pixels across, from which on our gradient of a convolution's weights is faster than PyTorch's
# Channels in the middle of a bottleneck, up to which computing them again is faster than keeping them, in float32. In bfloat16, where PyTorch's
# convolutions are faster and ours are not, it never is (docs/training-speed.md).
WIDEST = 128


class Norm(ctypes.Structure):
    """`Norm` of norms.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "mean", "scale", "running_mean", "running_variance")] + [
        (name, ctypes.c_double) for name in ("epsilon", "momentum")
    ]


class Bottleneck(ctypes.Structure):
    """`Bottleneck` of bottleneck.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("inputs", "hidden", "outputs")),
        *((name, ctypes.c_void_p) for name in ("expand", "expand_bias", "project", "project_bias")),
        ("norm", Norm),
    ]


class Convolution(ctypes.Structure):
    """`Convolution` of convolution.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("images", "height", "width", "inputs", "outputs", "groups")]


class BottleneckGradients(ctypes.Structure):
    """`BottleneckGradients` of bottleneck.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("expand", "expand_bias", "project", "project_bias", "weight", "bias")]


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the types of the library's functions."""
    whole, large, address = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
    gradients = BottleneckGradients
    library.cmunext_norm.argtypes = [whole, whole, address, large, Norm, whole, address, whole]
    library.cmunext_fixed_norm.argtypes = library.cmunext_norm.argtypes
    library.cmunext_norm_gradient.argtypes = [whole, whole, address, address, large, Norm, whole, *[address] * 3, whole]
    library.cmunext_bottleneck.argtypes = [address, large, Bottleneck, address, whole]
    library.cmunext_bottleneck_gradient.argtypes = [*[address] * 2, large, Bottleneck, address, gradients, whole]
    library.cmunext_upsampling.argtypes = [whole, address, address, *[whole] * 4, address, whole]
    library.cmunext_upsampling_gradient.argtypes = [whole, address, *[whole] * 4, address, address, whole]
    library.cmunext_convolution_gradient.argtypes = [*[address] * 2, Convolution, *[address] * 2, whole]
    library.cmunext_depthwise_gradient.argtypes = [whole, *[address] * 2, Convolution, whole, *[address] * 2, whole]
    for function in (
        library.cmunext_convolution_gradient,
        library.cmunext_depthwise_gradient,
        library.cmunext_upsampling,
        library.cmunext_upsampling_gradient,
        library.cmunext_norm,
        library.cmunext_fixed_norm,
        library.cmunext_norm_gradient,
        library.cmunext_bottleneck,
        library.cmunext_bottleneck_gradient,
    ):
        function.restype = None


def takes_norm(library: ctypes.CDLL, x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether the kernels compute this BatchNorm of this map: one that is trained, or one that is fixed where no gradient is asked for."""
    return (
        _takes(x, norm)
        and norm.training == torch.is_grad_enabled()
        and x.shape[1] == norm.num_features
        and _pixels(x) % library.cmunext_norm_pixels(x.shape[1]) == 0
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
        _is_map(x)
        and _as_convolved(x)
        and x.dtype == weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_grad_enabled()
        and weight.shape[2:] == (3, 3)
        and all(given in (1, (1, 1), [1, 1]) for given in (stride, padding, dilation))
        and weight.shape[1] % NARROWEST == weight.shape[0] // groups % NARROWEST == 0
        and x.shape[3] >= NARROWEST_MAP
    )


def takes_depthwise(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether the kernels compute the gradient of the weights of this depthwise convolution; arguments as `conv2d`'s."""
    kernel = weight.shape[2]
    return (
        _is_map(x)
        and _as_convolved(x)
        and weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_grad_enabled()
        and x.shape[1] == len(weight) == groups
        and weight.shape[1:] == (1, kernel, kernel)
        and kernel in DEPTHWISE
        and all(given in (1, (1, 1), [1, 1]) for given in (stride, dilation))
        and padding in (kernel // 2, (kernel // 2,) * 2, [kernel // 2] * 2)
        and groups % NARROWEST == 0
    )


def _takes(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.weight is not None
        and norm.weight.dtype == torch.float32
        and _is_map(x)
        and _pixels(x) > 1
    )


def _as_convolved(x: Tensor) -> bool:
    """Whether PyTorch's convolution of this map would compute, and give, its very format."""
    return x.dtype == (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)


def _is_map(x: Tensor) -> bool:
    return x.dtype in FORMATS and x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _pixels(x: Tensor) -> int:
    return x.numel() // x.shape[1]


class TrainedNorm(torch.autograd.Function):
    """norm(gelu(x)), or relu(norm(x)), by the statistics of the batch: N x C x H x W -> the same shape."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, relu: bool, library: ctypes.CDLL
    ) -> Tensor:
        statistics = torch.empty(2, norm.num_features, dtype=torch.float32)
        output = torch.empty_like(x, memory_format=torch.channels_last)
        library.cmunext_norm(
            *(x.dtype == torch.bfloat16, relu, x.data_ptr(), _pixels(x), _norm(norm, weight, bias, statistics)),
            *(norm.num_features, output.data_ptr(), torch.get_num_threads()),
        )
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
            *(x.dtype == torch.bfloat16, context.relu, x.data_ptr(), given.data_ptr(), _pixels(x)),
            *(_norm(context.norm, weight, bias, statistics), context.norm.num_features),
            *(of_x.data_ptr(), of_weight.data_ptr(), of_bias.data_ptr(), torch.get_num_threads()),
        )
        return of_x, of_weight, of_bias, None, None, None


def fixed_norm(x: Tensor, norm: nn.BatchNorm2d, relu: bool, library: ctypes.CDLL) -> Tensor:
    """norm(gelu(x)), or relu(norm(x)), by the norm's running statistics: N x C x H x W -> the same shape."""
    assert norm.running_mean is not None and norm.running_var is not None
    statistics = torch.stack([norm.running_mean, (norm.running_var + norm.eps).rsqrt()])
    output = torch.empty_like(x, memory_format=torch.channels_last)
    library.cmunext_fixed_norm(
        *(x.dtype == torch.bfloat16, relu, x.data_ptr(), _pixels(x), _norm(norm, norm.weight, norm.bias, statistics)),
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
            *(x.data_ptr(), _pixels(x), _bottleneck(norm, parameters, statistics), output.data_ptr(), torch.get_num_threads())
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
            *(x.data_ptr(), given.data_ptr(), _pixels(x), _bottleneck(context.norm, parameters, statistics), of_x.data_ptr()),
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
