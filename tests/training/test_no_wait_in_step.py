"""Nothing in a step waits for the device or brings data to it: only such a step can be recorded as a CUDA graph. It is run on tensors without
data, where whatever would need a number on the host fails."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmunext import losses, networks
from cmunext.training import step as steps

DEVICE = torch.device("meta")
LOSSES = {"bce-dice": losses.BCEDiceLoss(), "boundary-dou": losses.BoundaryDoULoss(1), "taught": losses.DistillationLoss(0.5)}
SLOW = {"medt": pytest.mark.slow}  # 30,000 operations
CASES = [
    *(pytest.param(name, "bce-dice", marks=SLOW.get(name, ())) for name in networks.names()),
    ("cmunext-s", "boundary-dou"),
    ("cmunext-s", "taught"),
]


class OtherDevices(TorchDispatchMode):
    """Notes each operation that touches a tensor of another device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.elsewhere: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        if any(tensor.device != DEVICE for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)):
            self.elsewhere.add(str(function))
        return result


def operations_elsewhere(network: nn.Module, loss_of: nn.Module, side: int) -> set[str]:
    """Operations of a step, all but the optimiser's, that touch the host."""
    watched = OtherDevices()

    def record(compute: Any, undo: Any) -> Any:
        compute()
        with watched:
            return None, compute()

    optimizer = SimpleNamespace(param_groups=[], state={}, step=lambda: None, zero_grad=lambda set_to_none: network.zero_grad())
    fabric = SimpleNamespace(device=DEVICE, autocast=nullcontext)
    network.to(DEVICE).train()
    average, scale = steps.average_of(network, 0.9), torch.empty(3, 1, 1, device=DEVICE)
    recorded = steps.RecordedStep(
        fabric, network, optimizer, average, 0.9, loss_of, lambda images: images.float() * scale, torch.channels_last, record
    )
    images, masks = (torch.empty(2, channels, side, side, dtype=torch.uint8, device=DEVICE) for channels in (3, 1))
    probability = (masks.float(),) if isinstance(loss_of, losses.DistillationLoss) else ()
    recorded.prepare(images, (masks, *probability))
    assert watched.operations
    return watched.elsewhere


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_a_step_touches_the_device_alone(name: str, loss: str) -> None:
    side = 224 if name == "swin-unet" else 256
    assert operations_elsewhere(networks.create(name), LOSSES[loss], side) == set()


class Counting(nn.Module):
    """Multiplies by a number of the host in each step, which a graph would record as it is at the recording."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images) * torch.tensor(2.0).reshape(1)[0]


class Deciding(Counting):
    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images)
        return logits if logits.mean() > 0 else -logits


def test_it_would_be_noticed() -> None:
    assert operations_elsewhere(Counting(), LOSSES["bce-dice"], 8)
    with pytest.raises(RuntimeError, match="meta"):
        operations_elsewhere(Deciding(), LOSSES["bce-dice"], 8)
