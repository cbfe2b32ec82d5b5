"""Deterministic weights that need no download: every tensor follows from its shape, or from its name.

The golden numbers were computed with the same fills on the authors' released networks. All arithmetic is float64, then
rounded to float32, and the networks run in float64.
"""

from collections.abc import Callable
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers of `shape` from PCG64 with `seed`."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def golden_input(size: tuple[int, ...] = (1, 3, 256, 256), seed: int = 7) -> Tensor:
    """The input of the goldens: normal noise, rounded to float32, as float64."""
    return torch.from_numpy(normal(seed, size).astype(np.float32)).double()


def fill_by_shape(network: nn.Module, gain: float = 1.0) -> nn.Module:
    """Fill every parameter and running statistic of `network`, in place, by its shape alone; returns it.

    Tensors of two or more dimensions: noise seeded by the shape, times sqrt(2 / fan_in) * gain. Norm layers, biases and other
    vectors: a sine or cosine of their index. Scalars keep their first value.
    """
    norm_parameters = set()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NORMS):
                norm_parameters.update(id(parameter) for parameter in module.parameters(recurse=False))
                _fill_norm(module)
        for name, parameter in network.named_parameters():
            if id(parameter) in norm_parameters or parameter.ndim == 0:
                continue
            shape = tuple(parameter.shape)
            k = np.arange(parameter.numel())
            if parameter.ndim >= 2:
                noise = normal(crc32("x".join(map(str, shape)).encode("ascii")), shape)
                values = noise * np.sqrt(2 / np.prod(shape[1:])) * gain
            elif name.endswith("bias"):
                values = 0.02 * np.sin(k + 2)
            else:
                values = 0.5 + 0.1 * np.cos(k)
            _assign(parameter, values)
    return network


def _fill_norm(module: nn.Module) -> None:
    k = np.arange(module.weight.numel())
    _assign(module.weight, 1 + 0.1 * np.sin(k))
    _assign(module.bias, 0.1 * np.cos(k))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        _assign(module.running_mean, 0.05 * np.sin(k + 1))
        _assign(module.running_var, 1 + 0.2 * np.cos(k) ** 2)


def state_by_name(keys: list[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """A float32 `state_dict` whose every tensor follows from its name: what stands in for an official checkpoint."""
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "running_var": lambda z: 1 + 0.2 * z**2,
        "running_mean": lambda z: 0.05 * z,
        "bias": lambda z: 0.05 * z,
        "weight": lambda z: 1 + 0.1 * z,
    }
    state = {}
    for name, shape in keys:
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        z = normal(crc32(name.encode("ascii")), tuple(shape))
        values = z * np.sqrt(2 / np.prod(shape[1:])) if len(shape) >= 2 else rules[name.rsplit(".", 1)[-1]](z)
        state[name] = torch.from_numpy(np.asarray(values).astype(np.float32))
    return state


def _assign(tensor: Tensor, values: np.ndarray) -> None:
    tensor.copy_(torch.from_numpy(np.asarray(values).astype(np.float32)))


def run_in_float64(network: nn.Module, x: Tensor) -> Tensor:
    """`network` on `x` in evaluation mode, all in float64."""
    with torch.inference_mode():
        return network.double().eval()(x)
