"""What a network costs: parameters, multiply-accumulates by two counters, and the activation memory of one image.

The package's networks are measured on PyTorch's meta device, where tensors have shapes only: nothing is computed, and no
weight is allocated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cmunext.networks import create, names

DEFAULT_SIZE = (256, 256)  # of the paper's tables; networks built for one size are measured at theirs


@dataclass(frozen=True)
class Published:
    """What a publication prints for a network, and why where its own counter does not give it."""

    parameters_millions: float
    gigaflops: float
    note: str = ""


# Tables 2 and 3 of the CMUNeXt paper; mobile-uvit from its own. The figures of the CMUNeXt paper are cut after two decimals.
PUBLISHED: Mapping[str, Published] = {
    "cmunext-s": Published(0.41, 1.09),
    "cmunext": Published(3.14, 7.41),
    "cmunext-l": Published(8.28, 17.18),
    "unet": Published(34.52, 65.52),
    "attention-unet": Published(34.87, 66.63),
    "unet++": Published(26.90, 37.62),
    "unet3+": Published(26.97, 199.74),
    "cmunet": Published(49.93, 91.25),
    "transunet": Published(
        105.32,
        38.52,
        "38.52 G is the count of another tool (fvcore); the counter of the other rows misses standardised convolutions",
    ),
    "medt": Published(
        1.37, 2.40, "1.37 M cannot be reproduced as a parameter count: the tool missed projections, position tables and gates"
    ),
    "swin-unet": Published(
        27.14, 5.91, "27.14 M cannot be reproduced as a parameter count: the tool missed the 22,308 of the position tables"
    ),
    "unext": Published(
        1.47,
        0.58,
        "0.58 G cannot be reproduced with the counter of the other rows (0.57); another tool's count, rounded, gives it",
    ),
    "convunext": Published(3.50, 7.25),
    "mobile-uvit": Published(1.39, 2.51, "2.51 G is rounded, where the CMUNeXt paper cuts (2.50)"),
    "reduced-unet": Published(3.34, 7.34),
    "cmunext-plain-skip": Published(3.18, 6.81),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one network on one image.

    Attributes
    ----------
    name : the network.
    input_shape : N, C, H, W of what was measured.
    parameters : number of values in all parameters.
    macs : multiply-accumulates of convolutions, linear layers and the products of attention, and of nothing else.
    macs_paper_counter, parameters_paper_counter : by the rule of the counter behind the paper's tables (`PAPER_RULE`).
    peak_activation_bytes : see `peak_activation_bytes`.
    paper_parameters_millions, paper_gigaflops : as printed in the paper; None where there is none.
    note : why a printed figure is not what its counter gives; empty where it is.
    """

    name: str
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    macs_paper_counter: int
    parameters_paper_counter: int
    peak_activation_bytes: int
    paper_parameters_millions: float | None
    paper_gigaflops: float | None
    note: str


def build(name: str) -> nn.Module:
    """The network `name` in evaluation mode; without memory for its weights where it is one of the package's."""
    with torch.device("meta" if name in names() else "cpu"):
        return create(name).eval()


def count_parameters(network: nn.Module) -> int:
    """Number of values in all parameters, trainable or not; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure(name: str) -> Cost:
    """The cost of the network `name` (or "module:callable") on one colour image of 256 x 256, or of the size it is built for."""
    network = build(name)
    device = next(network.parameters()).device
    x = torch.zeros(1, 3, *getattr(network, "image_size", DEFAULT_SIZE), device=device)
    paper_macs, paper_parameters = paper_count(network, x)
    published = PUBLISHED.get(name)
    return Cost(
        name=name,
        input_shape=tuple(x.shape),
        parameters=count_parameters(network),
        macs=strict_macs(network, x),
        macs_paper_counter=paper_macs,
        parameters_paper_counter=paper_parameters,
        peak_activation_bytes=peak_activation_bytes(network, x),
        paper_parameters_millions=published.parameters_millions if published else None,
        paper_gigaflops=published.gigaflops if published else None,
        note=published.note if published else "",
    )


def measure_all(chosen: Sequence[str] = ()) -> list[Cost]:
    """The costs of the networks `chosen`, or of all."""
    return [measure(name) for name in chosen or names()]


def strict_macs(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions, matrix products and attention in one forward pass, half of PyTorch's own FLOP count."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def paper_count(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates and parameters of one forward pass, by the rule of the counter behind the paper's tables.

    Only modules that run, have no children and are of exactly a type of `PAPER_RULE` count.
    """
    macs = 0
    parameters: dict[nn.Module, int] = {}

    def observe(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += PAPER_RULE[type(module)](module, given[0], output)
        parameters[module] = count_parameters(module)

    counted = [module for module in network.modules() if type(module) in PAPER_RULE and not list(module.children())]
    hooks = [module.register_forward_hook(observe) for module in counted]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return macs, sum(parameters.values())


def peak_activation_bytes(network: nn.Module, x: Tensor) -> int:
    """The most bytes that tensors hold at any moment of an eager forward pass without gradients, `x` included.

    The rule: every tensor that an operation returns counts from then until Python lets go of it, tensors that share memory
    once. Parameters, buffers and what an operation uses inside itself do not count. A runtime that fuses operations or plans
    its memory needs less; the figure compares networks.
    """
    with torch.no_grad(), _LiveMemory(network, x) as memory:
        network(x)
    return memory.peak


class _LiveMemory(TorchDispatchMode):
    """Adds up the storages that are alive after each operation; `peak` is the most it saw, in bytes."""

    def __init__(self, network: nn.Module, x: Tensor):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        self._live = 0
        self.peak = 0
        self._add(x)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _convolution(module: Any, _: Tensor, output: Tensor) -> int:
    return output.numel() * (module.in_channels // module.groups) * prod(module.kernel_size)


def _linear(module: Any, _: Tensor, output: Tensor) -> int:
    return output.numel() * module.in_features


def _norm(_: Any, given: Tensor, __: Tensor) -> int:
    return 4 * given.numel()


def _upsample(module: Any, _: Tensor, output: Tensor) -> int:
    return output.numel() * (11 if module.mode == "bilinear" else 1)


def _softmax(module: Any, given: Tensor, _: Tensor) -> int:
    length = given.shape[module.dim]
    return given.numel() // length * (3 * length - 1)


def _every_output(_: Any, __: Tensor, output: Tensor) -> int:
    return output.numel()


# The rule of thop 0.1.1, the counter behind most of the paper's figures. It goes by the exact type of a module: subclasses
# (standardised convolutions, MedT's projections) escape it, and so does everything that is no module (the products of
# attention, functional softmax and upsampling).
PAPER_RULE: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.LayerNorm: _norm,
    nn.Upsample: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.Softmax: _softmax,
    nn.AvgPool2d: _every_output,
}
