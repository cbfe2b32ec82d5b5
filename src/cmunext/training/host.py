"""Making a training step fast on a CPU, without changing what it computes.

Measured on two cores of a Xeon with AMX (CMUNeXt-S, batch 8, 256 x 256, bfloat16, channels_last; `benchmarks/training_step.py` measures
it anew): the C library gives every large activation back to the system and faults it in again at the next step, which takes more than
half of an eager step; and PyTorch's BatchNorm gradient for channels_last tensors of 8 channels is 20 to 50 times slower than for
contiguous ones. And its GELU of channels_last tensors goes past oneDNN, which on one core of an EPYC takes three times as long
forward and a third longer backward. All are mended here from the outside; nothing but the last bits of the results changes. Where our own
kernels can be had (`kernels`), they take most norms and GELUs, narrow bottlenecks and convolutions of upsampled maps, and the gradient of other
convolutions' weights.
"""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu
from torch.overrides import TorchFunctionMode

from cmunext.networks import blocks
from cmunext.training.kernels.choice import takes_bottleneck, takes_norm, takes_upsampling
from cmunext.training.kernels.functions import TrainedBottleneck, TrainedNorm, convolved_upsampling, fixed_norm, trained_conv2d

FEW_CHANNELS = 8  # up to here the contiguous BatchNorm pays for the two copies

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Let the GNU C library keep freed memory for the next step. True where that was possible; elsewhere nothing happens."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library: macOS, Windows, musl
        return False
    largest = 2**31 - 1
    return all([set_option(M_MMAP_MAX, 0), set_option(M_TRIM_THRESHOLD, largest), set_option(M_TOP_PAD, 64 << 20)])


def has_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware (AMX or AVX-512 BF16), so that it is faster than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def fast_layers(device: torch.device, kernels: ctypes.CDLL | None) -> AbstractContextManager[Any]:
    """`FastLayers` on a CPU, nothing elsewhere."""
    return FastLayers(kernels) if device.type == "cpu" else nullcontext()


def speed_up_narrow_norms(network: nn.Module) -> None:
    """Let BatchNorms of few channels train in the contiguous layout, whatever layout goes in and comes out."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.num_features <= FEW_CHANNELS:
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave)


class FastLayers(TorchFunctionMode):
    """While it is entered, the groups of layers of `networks.blocks`, and `conv2d`, are computed by the kernels where these can, and GELU shows
    a channels_last tensor to PyTorch as the contiguous N x H x W x C that it is in memory.

    library : of the kernels, see `kernels.library`; None leaves all to PyTorch. Layers that a kernel takes are not called as modules, and
        their hooks are not called.
    """

    def __init__(self, library: ctypes.CDLL | None):
        super().__init__()
        self.library = library

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (blocks.relu_of_norm, blocks.norm_of_gelu, blocks.bottleneck, blocks.convolved_upsampling):
            with self:
                return self._layers(function, *args)
        if function is conv2d and self.library and len(args) > 1:
            return trained_conv2d(self.library, *args, **kwargs)
        if function is gelu and args and kwargs.get("approximate", "none") == "none" and _lies_channels_last(args[0]):
            return gelu(args[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return function(*args, **kwargs)

    def _layers(self, function: Any, x: Tensor, *modules: Any) -> Tensor:
        if function is blocks.bottleneck:
            expand, norm, project = modules
            if self.library and takes_bottleneck(x, expand, norm, project):
                parameters = (expand.weight, expand.bias, norm.weight, norm.bias, project.weight, project.bias)
                return TrainedBottleneck.apply(x, *parameters, norm, self.library)
            return project(blocks.norm_of_gelu(expand(x), norm))
        if function is blocks.convolved_upsampling:
            upsample, convolution = modules
            if self.library and takes_upsampling(x, upsample, convolution):
                return convolved_upsampling(x, convolution, self.library)
            return convolution(upsample(x))
        (norm,) = modules
        relu = function is blocks.relu_of_norm
        if self.library and takes_norm(self.library, x, norm):
            if not norm.training:
                return fixed_norm(x, norm, relu, self.library)
            return TrainedNorm.apply(x, norm.weight, norm.bias, norm, relu, self.library)
        return torch.relu(norm(x)) if relu else norm(gelu(x))


def _lies_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _enter(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    return (_ToContiguous.apply(inputs[0]),) if module.training and torch.is_grad_enabled() else None


def _leave(module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
    return _ToChannelsLast.apply(output) if module.training and torch.is_grad_enabled() else None


class _ToContiguous(torch.autograd.Function):
    """Identity that lays its input out contiguously, and its gradient as channels_last."""

    @staticmethod
    def forward(_context, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(_context, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


class _ToChannelsLast(torch.autograd.Function):
    """Identity that lays its input out as channels_last, and its gradient contiguously."""

    @staticmethod
    def forward(_context, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(_context, gradient: Tensor) -> Tensor:
        return gradient.contiguous()
