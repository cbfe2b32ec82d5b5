"""The training loop, all of it: batches, steps, averages, validation, and what is written when.

State lives in the checkpoint and randomness is a function of (seed, epoch, case), so a training that is killed anywhere and goes on from
`last.ckpt` takes the same steps as one that never stopped.
"""

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cmunext import losses
from cmunext.data.dataset import Cases
from cmunext.errors import InputError
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import measured_classes
from cmunext.metrics import Counts, summarise
from cmunext.training import checkpoint, device_batches, host
from cmunext.training import step as steps
from cmunext.training.batches import HostBatches, Normalise, epoch_batches, share
from cmunext.training.checkpoint import Progress
from cmunext.training.device_batches import DeviceBatches
from cmunext.training.kernels import VERSION as KERNELS
from cmunext.training.kernels.library import load as load_kernels
from cmunext.training.recipe import Recipe
from cmunext.training.schedule import learning_rate
from cmunext.training.step import EagerStep, Loss, RecordedStep, average_of, lay_out, load_optimizer, optimizer_of

SECONDS_BETWEEN_SAVES = 10  # at least, where data lie on the device; an epoch of best weights is saved at once


@dataclass(frozen=True)
class Hooks:
    """What the loop tells and asks while it runs.

    Attributes
    ----------
    step : told (epoch from 0, batches done, batches in the epoch, loss) after each step; None for a loss that is still being computed.
    epoch : told the history row after each epoch.
    stop : asked after each step; True makes the loop save and return.
    say : told a sentence.
    keep_best, keep_last : given the network to write as best (with its history row), and raw network and average at the end.
    """

    step: Callable[[int, int, int, float | None], None]
    epoch: Callable[[dict], None]
    say: Callable[[str], None]
    stop: Callable[[], bool]
    keep_best: Callable[[nn.Module, dict], None]
    keep_last: Callable[[nn.Module, nn.Module | None, dict], None]


def fit(
    fabric: Fabric,
    network: nn.Module,
    recipe: Recipe,
    train: Cases,
    validation: Cases,
    run: Path,
    identity: str,
    hooks: Hooks,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Progress:
    """Train `network` in place until the recipe's last epoch, or until `hooks.stop` says so.

    Parameters
    ----------
    fabric : launched; decides device, precision and how many processes share the batches.
    network : N x C x H x W -> logits N x K x H x W, initialised from the recipe's seed.
    run : the folder of `last.ckpt` and `history.csv`. A checkpoint there is gone on from.
    identity : digest of everything that must not change when a run goes on.
    teacher : augmented images, uint8 N x C x H x W -> probabilities float32 N x K x H x W on the device, which the network learns from
        besides the masks, with the recipe's `distill_weight`; None for the masks alone.

    Raises
    ------
    InputError : the loss is not finite (the step and its cases are named), or the checkpoint belongs to another run.
    """
    progress, states = checkpoint.load(run, identity) or (Progress(), {})
    device = fabric.device
    resident = fabric.world_size == 1 and device_batches.fits(train, validation, recipe, device)
    network.to(device)  # before the optimiser, whose state follows its parameters
    average = average_of(network, recipe.ema_decay)
    optimizer = optimizer_of(network, recipe, resident)
    if states:
        network.load_state_dict(states["network"])
        load_optimizer(optimizer, states["optimizer"])
    if states and average is not None:
        average.load_state_dict(states["average"])

    source, validated = (DeviceBatches(cases, device) if resident else HostBatches(cases) for cases in (train, validation))
    loss_of = losses.DistillationLoss(recipe.distill_weight) if teacher else _loss_of(recipe, train)
    begun: dict[str, Any] = states.get("steps", {})  # how the run took its steps until now
    layout = next((one for one in steps.LAYOUTS if str(one) == begun.get("layout")), None)
    kernels = None
    if device.type == "cpu" and not resident and begun.get("kernels", not states):  # a run goes on as it began
        kernels = load_kernels(hooks.say)
    step = _step(fabric, network, optimizer, average, recipe, loss_of, train, teacher, resident, layout, kernels, hooks.say)
    layout_name = str(step.layout) if isinstance(step, RecordedStep) else ""
    taken = {"resident": resident, "layout": layout_name, "kernels": KERNELS if kernels else 0}
    if begun and {"kernels": 0} | begun != taken:
        hooks.say(f"warning: the run took its steps by {begun} and now does by {taken}: not to the same bits")
    measured = average.module if average is not None else network
    batches_per_epoch = math.ceil(len(train) / recipe.batch_size)
    total_steps = recipe.epochs * batches_per_epoch
    saved = -math.inf

    def save() -> None:
        if fabric.is_global_zero:
            states = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "steps": taken}
            checkpoint.save(run, progress, states | ({"average": average.state_dict()} if average else {}), identity)
        fabric.barrier()

    while progress.epoch < recipe.epochs:
        network.train()
        if recipe.freeze_batch_statistics:
            _freeze_batch_statistics(network)
        batches = epoch_batches(len(train), recipe, progress.epoch)
        shares = [share(batch, fabric.global_rank, fabric.world_size) for batch in batches[progress.batch :]]
        running: list[float | Tensor] = [*progress.losses]  # of the epoch; tensors are still being computed
        for part, (images, masks) in source.training(shares, recipe, progress.epoch):
            number = progress.epoch * batches_per_epoch + progress.batch
            rate = learning_rate(recipe, number, total_steps)
            drawn = number + recipe.epochs_before * batches_per_epoch
            torch.manual_seed(recipe.seed + 1_000_003 * (drawn + 1) + fabric.global_rank)  # dropout and stochastic depth
            images, masks = images.to(device, non_blocking=True), masks.to(device)
            with host.fast_layers(device, kernels):
                targets = (masks, teacher(images)) if teacher else (masks,)
            loss = step(images, targets, part, rate)
            running.append(loss)
            known = loss if isinstance(loss, float) else None
            if known is not None and not math.isfinite(known):
                raise _not_finite(running, progress.epoch, batches, train, run)
            progress.batch += 1
            hooks.step(progress.epoch, progress.batch, batches_per_epoch, known)
            if progress.batch < batches_per_epoch and _anyone(fabric, hooks.stop()):
                break

        progress.losses = [float(loss) for loss in running]  # waits for the device
        if not all(map(math.isfinite, progress.losses)):
            raise _not_finite(running, progress.epoch, batches, train, run)
        if not torch.stack([values.isfinite().all() for values in (*network.parameters(), *network.buffers())]).all():
            raise InputError(  # which the next loss would show, when they are saved already
                f"the weights are not finite after step {progress.batch} of epoch {progress.epoch + 1}; lower the learning rate; "
                f"{_saved_before(run)}"
            )
        if progress.batch < batches_per_epoch:
            save()
            return progress
        mean = math.fsum(progress.losses) / len(progress.losses)
        row: dict[str, float | int | None] = {"epoch": progress.epoch + 1, "learning_rate": rate, "loss": mean}
        last = progress.epoch + 1 == recipe.epochs
        due = last or (progress.epoch + 1) % recipe.validate_every == 0
        scores = validate(fabric, measured, recipe, validation, validated) if due else None
        row |= scores or dict.fromkeys(("val_loss", "val_iou", "val_dice"))
        progress.history.append(row)
        progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, []
        iou = scores["val_iou"] if scores else -math.inf
        improved = iou > progress.best_iou
        if improved:
            progress.best_iou, progress.best_epoch = iou, progress.epoch
            if fabric.is_global_zero:
                hooks.keep_best(measured, row)
        hooks.epoch(row)
        stop = not last and _anyone(fabric, hooks.stop())
        if last or stop or improved or not resident or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            if fabric.is_global_zero:
                checkpoint.write_history(run, progress.history)
            save()
            saved = time.monotonic()
        if stop:
            return progress

    if fabric.is_global_zero:
        checkpoint.write_history(run, progress.history)
        hooks.keep_last(network, average.module if average else None, progress.history[-1])
    return progress


def _step(
    fabric: Fabric,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    recipe: Recipe,
    loss_of: Loss,
    train: Cases,
    teacher: Callable[[Tensor], Tensor] | None,
    resident: bool,
    layout: torch.memory_format | None,
    kernels: ctypes.CDLL | None,
    say: Callable[[str], None],
) -> EagerStep | RecordedStep:
    """The step for this device, with the network laid out for it; recorded where the data lie on the device, in the given layout or else
    in the fastest."""
    normalise = Normalise(recipe.preprocessing, fabric.device)

    def lay_all_out(layout: torch.memory_format) -> None:
        lay_out(network, layout, optimizer)
        if average is not None:
            lay_out(average.module, layout)

    if resident:
        network.train()  # as in the steps that are recorded
        if recipe.freeze_batch_statistics:
            _freeze_batch_statistics(network)
        torch.backends.cudnn.benchmark = True
        example = _example(train, recipe, fabric.device, with_teacher=teacher is not None)
        try:
            layout = layout or steps.fastest_layout(fabric, network, loss_of, normalise, example, steps.record_on_gpu)
            lay_all_out(layout)
            recorded = RecordedStep(
                fabric, network, optimizer, average, recipe.ema_decay, loss_of, normalise, layout, steps.record_on_gpu
            )
            for count in sorted({len(example[0]), len(train) % recipe.batch_size} - {0}):  # an epoch's last batch may be smaller
                recorded.prepare(example[0][:count], tuple(one[:count] for one in example[1:]))
            return recorded
        except RuntimeError as error:  # the network waits for the device, or memory is short
            cause = str(error.__context__ or error).splitlines()[0]
            say(f"the training step cannot be recorded as a CUDA graph ({cause}); it runs step by step, slower")
            for parameter in network.parameters():
                parameter.grad = None
    lay_all_out(torch.channels_last)
    if fabric.device.type == "cpu":
        host.speed_up_narrow_norms(network)
    wrapped, stepping = fabric.setup_module(network), fabric.setup_optimizers(optimizer)
    return EagerStep(fabric, wrapped, stepping, network, average, loss_of, normalise, kernels)


@torch.no_grad()
def validate(
    fabric: Fabric, network: nn.Module, recipe: Recipe, cases: Cases, batches: HostBatches | DeviceBatches
) -> dict[str, float]:
    """Loss, and IoU and Dice of the measured classes, on a list at the network's size: means over images of per-image (and per-class) values."""
    network.eval()
    _share_buffers(fabric, network)
    normalise, loss_of = Normalise(recipe.preprocessing, fabric.device), _loss_of(recipe, cases)
    totals = torch.zeros(len(cases), cases.masks.shape[-1], 4, dtype=torch.float64, device=fabric.device)  # loss, tp, fp, fn
    chunks = [np.arange(start, min(start + recipe.batch_size, len(cases))) for start in range(0, len(cases), recipe.batch_size)]
    for indices in chunks[fabric.global_rank :: fabric.world_size]:
        images, masks = batches.validation(indices)
        with fabric.autocast():
            logits = network(normalise(images))
        logits, truth = logits.float(), masks.to(fabric.device, non_blocking=True).bool()
        predicted = _binarised(logits, recipe.preprocessing)
        rows = torch.from_numpy(indices).to(fabric.device, non_blocking=True)
        totals[rows, :, 0] = loss_of(logits, truth.float()).double()
        for column, pixels in enumerate((predicted & truth, predicted & ~truth, ~predicted & truth), start=1):
            totals[rows, :, column] = pixels.sum((2, 3)).double()
    loss, *pixels_of = _reduced(fabric, totals, "sum").cpu().numpy().transpose(2, 0, 1)
    kept = measured_classes(cases.classes)
    tp, fp, fn = (counted[:, kept] for counted in pixels_of)
    pixels = cases.images.shape[1] * cases.images.shape[2]
    means = summarise(Counts(tp, fp, fn, pixels - tp - fp - fn))["per_image"]
    return {"val_loss": float(loss.mean()), "val_iou": float(np.mean(means["iou"])), "val_dice": float(np.mean(means["dice"]))}


def _binarised(logits: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Logits N x K x H x W -> bool of the same shape, as `Preprocessing.binarise` does."""
    if preprocessing.activation == "softmax":
        return torch.arange(logits.shape[1], device=logits.device)[:, None, None] == logits.argmax(1, keepdim=True)
    return torch.sigmoid(logits) > preprocessing.threshold


def _loss_of(recipe: Recipe, cases: Cases) -> nn.Module:
    """The recipe's loss to the truth: logits and masks N x K x H x W -> scalar."""
    return losses.BCEDiceLoss() if recipe.loss == "bce-dice" else losses.BoundaryDoULoss(cases.masks.shape[-1])


def _example(cases: Cases, recipe: Recipe, device: torch.device, with_teacher: bool) -> tuple[Tensor, ...]:
    """A batch of the recipe's size: images and masks, and masks again in the place of a teacher's probability."""
    chosen = np.resize(np.arange(len(cases)), recipe.batch_size if len(cases) >= recipe.batch_size else len(cases))
    images, masks = (tensor.to(device) for tensor in HostBatches(cases).validation(chosen))
    return images, masks, *([masks.float()] if with_teacher else [])


def _not_finite(losses: list[float | Tensor], epoch: int, batches: list[np.ndarray], train: Cases, run: Path) -> InputError:
    """What is wrong with an epoch in which a loss is not finite."""
    batch, loss = next((number, float(loss)) for number, loss in enumerate(losses) if not math.isfinite(float(loss)))
    names = ", ".join(train.names[index] for index in batches[batch])
    return InputError(
        f"the loss is {loss} at step {epoch * len(batches) + batch} (epoch {epoch + 1}, batch {batch + 1}), cases: {names}; "
        f"look at these images, or lower the learning rate; {_saved_before(run)}"
    )


def _saved_before(run: Path) -> str:
    return "last.ckpt holds an earlier state" if (run / checkpoint.FILE).is_file() else "nothing was saved"


def _freeze_batch_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _share_buffers(fabric: Fabric, network: nn.Module) -> None:
    """Give every process the batch statistics of the first, so that all validate the network that is saved."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def _anyone(fabric: Fabric, stop: bool) -> bool:
    """True when any process wants to stop."""
    if fabric.world_size == 1:
        return stop  # without asking the device, which is at work
    return bool(_reduced(fabric, torch.tensor(float(stop), device=fabric.device), "sum") > 0)


def _reduced(fabric: Fabric, values: Tensor, operation: str) -> Tensor:
    """Mean or sum over the processes."""
    reduced = fabric.all_reduce(values, reduce_op=operation)
    assert isinstance(reduced, Tensor)  # what goes in as a tensor comes out as one
    return reduced
