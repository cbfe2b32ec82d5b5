"""One step of training: forward, loss, backward, optimiser and average of weights. `EagerStep` anywhere; `RecordedStep` on one GPU, where
the whole step is recorded once as a CUDA graph and replayed, so that no time goes into launching its hundreds of small kernels.
"""

import ctypes
import math
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cmunext.training import host
from cmunext.training.batches import Normalise, Share
from cmunext.training.recipe import Recipe

WARM_UP = 3  # runs before a recording, in which libraries choose their kernels
TRIALS = 10  # replays that a layout is timed by
LAYOUTS = (torch.channels_last, torch.contiguous_format)

Loss = Callable[..., Tensor]  # logits and targets, all N x K x H x W -> scalar
Record = Callable[[Callable[[], Tensor], Callable[[], None]], tuple[Callable[[], None], Tensor]]


def average_of(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of parameters and batch statistics, ramping up so that short trainings have one too; None for decay 0."""
    if not decay:
        return None

    def blend(averaged: Any, current: Any, updates: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, _share_of_new(decay, int(updates)))
        else:  # counters of batches
            torch._foreach_copy_(averaged, current)

    return AveragedModel(network, multi_avg_fn=blend, use_buffers=True)


def lay_out(network: nn.Module, layout: torch.memory_format, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Lay the 4-D tensors of a network out in memory, in place, and what its optimiser keeps of them alike, as fused ones need it."""
    kept = [value for state in optimizer.state.values() for value in state.values()] if optimizer else []
    for tensor in (*network.parameters(), *network.buffers(), *kept):
        if isinstance(tensor, Tensor) and tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def optimizer_of(network: nn.Module, recipe: Recipe, recorded: bool) -> torch.optim.Optimizer:
    """The recipe's optimiser; `recorded`, one whose learning rate may be a tensor and that never waits for the device."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate: Any = torch.tensor(recipe.learning_rate, device=parameters[0].device) if recorded else recipe.learning_rate
    kind: dict[str, Any] = {"fused": True} if recorded else {"foreach": True}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, **kind)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=recipe.weight_decay, capturable=recorded, **kind)
    optimizer._warned_capturable_if_run_uncaptured = True  # the runs before a recording are meant
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take an optimiser's state from a checkpoint, which may come from another device, but not how it computes there."""
    kinds = ("foreach", "fused", "capturable")
    groups = [
        {**saved, **{kind: own[kind] for kind in kinds if kind in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


class EagerStep:
    """A step on any device, shared between processes or not. It waits for its loss, and changes nothing when that is not finite.

    Parameters
    ----------
    network : set up by Fabric. optimizer : likewise. average, bare : the average of weights and the network that it is of.
    kernels : for a CPU, see `kernels.library`; None for PyTorch's own layers.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        optimizer: Any,
        bare: nn.Module,
        average: AveragedModel | None,
        loss_of: Loss,
        normalise: Normalise,
        kernels: ctypes.CDLL | None = None,
    ):
        self.fabric, self.network, self.optimizer, self.bare, self.average = fabric, network, optimizer, bare, average
        self.loss_of, self.normalise, self.kernels = loss_of, normalise, kernels

    def __call__(self, images: Tensor, targets: tuple[Tensor, ...], part: Share, rate: float) -> float:
        """The mean loss over the whole batch.

        Parameters
        ----------
        images : uint8 N x C x H x W of this process's part. targets : N x K x H x W each, as the loss takes them. rate : of learning.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with host.fast_layers(self.fabric.device, self.kernels):
            logits = self.network(self.normalise(images))
        if part.count:
            loss = self.loss_of(logits[: part.count], *(target[: part.count].float() for target in targets)) * part.weight
        else:
            loss = logits.sum() * 0.0  # takes part in the exchange of gradients and adds nothing to them
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        reduced = self.fabric.all_reduce(loss.detach(), reduce_op="mean")
        assert isinstance(reduced, Tensor)  # what goes in as a tensor comes out as one
        value = float(reduced)
        if math.isfinite(value):
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.bare)
        return value


class RecordedStep:
    """A step on one GPU, recorded for each batch size and replayed. It returns at once, with a loss that is still being computed.

    Parameters
    ----------
    optimizer : a bare one whose learning rate may be a tensor (fused). decay : of the average, as in `average_of`.
    layout : in which the network lies in memory. record : see `record_on_gpu`.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        decay: float,
        loss_of: Loss,
        normalise: Normalise,
        layout: torch.memory_format,
        record: Record,
    ):
        self.fabric, self.network, self.optimizer, self.average, self.decay = fabric, network, optimizer, average, decay
        self.loss_of, self.normalise, self.layout, self.record = loss_of, normalise, layout, record
        self.rate = torch.zeros((), device=fabric.device)
        self.share_of_new = torch.zeros((), device=fabric.device)
        self.recordings: dict[int, tuple[tuple[Tensor, ...], Callable[[], None], Tensor]] = {}
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    def prepare(self, images: Tensor, targets: tuple[Tensor, ...]) -> None:
        """Record the step for batches of this size; training does not go on by it. Raises RuntimeError where that is not possible."""
        inputs = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in (images, *targets))

        def compute() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = _loss(self.fabric, self.network, self.loss_of, self.normalise, self.layout, inputs)
            loss.backward()
            self.optimizer.step()
            self._blend()
            return loss.detach()

        undo = self._undo()
        try:
            replay, loss = self.record(compute, undo)
        except RuntimeError:
            undo()
            raise
        self.recordings[len(images)] = (inputs, replay, loss)

    def __call__(self, images: Tensor, targets: tuple[Tensor, ...], part: Share, rate: float) -> Tensor:
        """The loss of the batch, see `EagerStep`; batches of its size are prepared."""
        inputs, replay, loss = self.recordings[len(images)]
        for kept, given in zip(inputs, (images, *targets), strict=True):
            kept.copy_(given)
        self.rate.fill_(rate)
        if self.average is not None:
            self.share_of_new.fill_(_share_of_new(self.decay, int(self.average.n_averaged)))
            self.average.n_averaged += 1  # lies on the host
        replay()
        return loss.clone()

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and buffers of the average, and those of the network that they are of."""
        assert self.average is not None
        first, second = (chain(some.parameters(), some.buffers()) for some in (self.average.module, self.network))
        return list(first), list(second)

    def _blend(self) -> None:
        if self.average is None:
            return
        averaged, current = self._tensors()
        numbers = [index for index, tensor in enumerate(averaged) if tensor.is_floating_point()]
        counters = [index for index in range(len(averaged)) if index not in set(numbers)]
        with torch.no_grad():
            difference = torch._foreach_sub([current[index] for index in numbers], [averaged[index] for index in numbers])
            torch._foreach_mul_(difference, self.share_of_new)
            torch._foreach_add_([averaged[index] for index in numbers], difference)
            if counters:
                torch._foreach_copy_([averaged[index] for index in counters], [current[index] for index in counters])

    def _undo(self) -> Callable[[], None]:
        """A function that takes network, average and optimiser back to what they are now."""
        modules = [self.network, *([self.average.module] if self.average is not None else [])]
        tensors = [tensor for module in modules for tensor in chain(module.parameters(), module.buffers())]
        kept = [(tensor, tensor.detach().clone()) for tensor in (*tensors, *self._optimizer_state())]
        known = {id(tensor) for tensor, _ in kept}

        def undo() -> None:
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
                for tensor in self._optimizer_state():
                    if id(tensor) not in known:  # made since: an optimiser's state begins with zeros
                        tensor.zero_()

        return undo

    def _optimizer_state(self) -> list[Tensor]:
        return [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def record_on_gpu(compute: Callable[[], Tensor], undo: Callable[[], None]) -> tuple[Callable[[], None], Tensor]:
    """Record `compute` as a CUDA graph.

    Parameters
    ----------
    compute : works on tensors that stay where they are. undo : takes back what the runs before the recording did.

    Returns
    -------
    A function that runs it again without waiting, and the tensor that then holds its result.
    """
    here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(here)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                compute()
    finally:
        here.wait_stream(stream)
    undo()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = compute()
    finally:
        torch.cuda.set_stream(here)  # which a failed capture would leave on its own
    return graph.replay, result


def fastest_layout(
    fabric: Fabric, network: nn.Module, loss_of: Loss, normalise: Normalise, batch: tuple[Tensor, ...], record: Record
) -> torch.memory_format:
    """The layout in which forward and backward of this network, in the mode that it is in, are the fastest on this device, measured on a
    batch: images, targets."""

    # A function, so that one recording and its memory are gone before the next.
    def seconds(layout: torch.memory_format) -> float:
        trial = deepcopy(network)
        lay_out(trial, layout)

        def compute() -> Tensor:
            trial.zero_grad(set_to_none=True)
            loss = _loss(fabric, trial, loss_of, normalise, layout, batch)
            loss.backward()
            return loss.detach()

        replay, result = record(compute, lambda: None)
        replay()  # the first also uploads it
        float(result)
        start = time.perf_counter()
        for _ in range(TRIALS):
            replay()
        float(result)  # waits for the device
        return time.perf_counter() - start

    return min(LAYOUTS, key=seconds)


def _loss(
    fabric: Fabric,
    network: nn.Module,
    loss_of: Loss,
    normalise: Normalise,
    layout: torch.memory_format,
    batch: tuple[Tensor, ...],
) -> Tensor:
    images, *targets = batch
    with fabric.autocast():
        logits = network(normalise(images).contiguous(memory_format=layout))
    return loss_of(logits.float(), *(target.float() for target in targets))


def _share_of_new(decay: float, updates: int) -> float:
    """How much of the network goes into its average at an update: all at the first, less and less until 1 - decay."""
    return 1 - min(decay, (1 + updates) / (10 + updates)) if updates else 1.0
