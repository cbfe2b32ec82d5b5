"""Official checkpoint keys of CMUNeXt <-> ours, and the size of network that a checkpoint holds."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cmunext.errors import InputError

LEVELS = 5
BLOCK = {
    "depthwise": "0.fn.0",
    "depthwise_norm": "0.fn.2",
    "expand": "1",
    "expand_norm": "3",
    "project": "4",
    "project_norm": "6",
}
FUSION = {"grouped": "0", "grouped_norm": "2", "expand": "3", "expand_norm": "5", "project": "6", "project_norm": "8"}
SIZES = {(8, 16, 32, 64, 128): "cmunext-s", (16, 32, 128, 160, 256): "cmunext", (32, 64, 128, 256, 512): "cmunext-l"}


def official_key(key: str) -> str:
    """The official name of one of our tensors: "encoder.0.blocks.0.expand.weight" -> "encoder1.block.0.1.weight"."""
    module, _, tensor = key.rpartition(".")
    parts = module.split(".")
    match parts:
        case ["head"]:
            name = "Conv_1x1"
        case ["stem", part]:
            name = f"stem.conv.{('conv', 'norm').index(part)}"
        case ["encoder", level, "widen", part]:
            name = f"encoder{int(level) + 1}.up.conv.{('conv', 'norm').index(part)}"
        case ["encoder", level, "blocks", block, part]:
            name = f"encoder{int(level) + 1}.block.{block}.{BLOCK[part]}"
        case ["upsample", level, "conv", part]:
            name = f"Up{LEVELS - int(level)}.up.{('conv', 'norm').index(part) + 1}"
        case ["fusion", level, part]:
            name = f"Up_conv{LEVELS - int(level)}.conv.{FUSION[part]}"
        case _:
            raise InputError(f"{key} is no tensor of CMUNeXt; official keys exist for cmunext-s, cmunext and cmunext-l only")
    return f"{name}.{tensor}"


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state_dict under the official keys, in the official order. Raises InputError when it is not a CMUNeXt's."""
    return {official_key(key): state[key].contiguous() for key in sorted(state, key=_official_position)}


def from_official(state: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """An official state_dict, prefixed with `module.` or not -> (network name, its arguments, our state_dict).

    Raises InputError when the tensors are not those of a CMUNeXt of a known size; `source` is named in it.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    shown = ["stem.conv.0.weight", "Conv_1x1.weight", *(f"encoder{level}.up.conv.0.weight" for level in range(1, LEVELS + 1))]
    if any(key not in state or state[key].ndim != 4 for key in shown):
        raise InputError(
            f"{source} is no official CMUNeXt checkpoint: stem, encoder or head are missing; give the state_dict itself"
        )
    stem, head, *exits = (state[key] for key in shown)
    widths = tuple(tensor.shape[0] for tensor in exits)
    if widths not in SIZES:
        raise InputError(
            f"{source} has the widths {widths}; the known sizes are " + ", ".join(f"{v} {k}" for k, v in SIZES.items())
        )
    arguments = {"in_channels": stem.shape[1], "num_classes": head.shape[0]}
    return SIZES[widths], arguments, {_our_key(key, source): tensor for key, tensor in state.items()}


def _our_key(key: str, source: str) -> str:
    module, _, tensor = key.rpartition(".")
    for pattern, name in (
        (r"Conv_1x1", lambda m: "head"),
        (r"stem\.conv\.([01])", lambda m: f"stem.{('conv', 'norm')[int(m[1])]}"),
        (r"encoder([1-5])\.up\.conv\.([01])", lambda m: f"encoder.{int(m[1]) - 1}.widen.{('conv', 'norm')[int(m[2])]}"),
        (r"encoder([1-5])\.block\.(\d+)\.(.+)", lambda m: f"encoder.{int(m[1]) - 1}.blocks.{m[2]}.{_inverse(BLOCK, m[3])}"),
        (r"Up([2-5])\.up\.([12])", lambda m: f"upsample.{LEVELS - int(m[1])}.conv.{('conv', 'norm')[int(m[2]) - 1]}"),
        (r"Up_conv([2-5])\.conv\.(\d+)", lambda m: f"fusion.{LEVELS - int(m[1])}.{_inverse(FUSION, m[2])}"),
    ):
        if found := re.fullmatch(pattern, module):
            return f"{name(found)}.{tensor}"
    raise InputError(f"{source} has the tensor {key}, which no CMUNeXt has; give the state_dict of CMUNeXt itself")


def _inverse(table: Mapping[str, str], value: str) -> str:
    return next((ours for ours, official in table.items() if official == value), f"unknown-{value}")


def _official_position(key: str) -> tuple[int, int]:
    """Where a tensor stands in the official order: stem, encoders, then Up and Up_conv level by level, head last."""
    group, *rest = key.split(".")
    level = int(rest[0]) if rest and rest[0].isdecimal() else 0
    order = {"stem": 0, "encoder": 1 + level, "upsample": 10 + 2 * level, "fusion": 11 + 2 * level, "head": 99}
    return (order[group], 0)
