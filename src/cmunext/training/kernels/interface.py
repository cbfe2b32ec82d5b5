"""The kernels' interface in C as ctypes knows it: structures, and the types of the library's functions."""

import ctypes
from typing import Any


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
    signatures: tuple[tuple[Any, list[Any]], ...] = (
        (library.cmunext_norm, [*[whole] * 3, address, large, Norm, whole, address, whole]),
        (library.cmunext_norm_gradient, [whole, whole, address, address, large, Norm, whole, *[address] * 3, whole]),
        (library.cmunext_bottleneck, [address, large, Bottleneck, address, whole]),
        (library.cmunext_bottleneck_gradient, [*[address] * 2, large, Bottleneck, address, BottleneckGradients, whole]),
        (library.cmunext_upsampling, [whole, address, address, *[whole] * 4, address, whole]),
        (library.cmunext_upsampling_gradient, [whole, address, *[whole] * 4, address, address, whole]),
        (library.cmunext_convolution_gradient, [*[address] * 2, Convolution, *[address] * 2, whole]),
        (library.cmunext_depthwise_gradient, [whole, *[address] * 2, Convolution, whole, *[address] * 2, whole]),
    )
    for function, types in signatures:
        function.argtypes, function.restype = types, None
