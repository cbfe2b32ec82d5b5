"""The training loop, all of it: batches, steps, averages, validation, and what is written when.

State lives in the checkpoint and randomness is a function of (seed, epoch, case), so a training that is killed anywhere and goes on from
`last.ckpt` takes the same steps as one that never stopped.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cmunext import losses
from cmunext.data.dataset import Cases
from cmunext.errors import InputError
from cmunext.image.preprocess import Preprocessing
from cmunext.metrics import Counts, summarise
from cmunext.training import checkpoint, host
from cmunext.training.batches import Normalise, Share, epoch_batches, share, training_batch, validation_batch
from cmunext.training.checkpoint import Progress
from cmunext.training.recipe import Recipe
from cmunext.training.schedule import learning_rate

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells and asks while it runs.

    Attributes
    ----------
    step : told (epoch from 0, batches done, batches in the epoch, loss) after each step.
    epoch : told the history row after each epoch.
    stop : asked after each step; True makes the loop save and return.
    keep_best, keep_last : given the network to write as best (with its history row), and raw network and average at the end.
    """

    step: Callable[[int, int, int, float], None]
    epoch: Callable[[dict], None]
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
    network.to(fabric.device)  # before the optimiser, whose state follows its parameters
    average = _average_of(network, recipe)
    optimizer = _optimizer(network, recipe)
    for name, part in (("network", network), ("average", average), ("optimizer", optimizer)):
        if name in states and part is not None:
            part.load_state_dict(states[name])

    _lay_out_channels_last(network)
    if fabric.device.type == "cpu":
        host.speed_up_narrow_norms(network)
    bare, network = network, fabric.setup_module(network)
    stepping: Any = fabric.setup_optimizers(optimizer)
    if average is not None:
        _lay_out_channels_last(average.module)
    measured = average.module if average is not None else bare

    def save() -> None:
        if fabric.is_global_zero:
            states = {"network": bare.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save(run, progress, states | ({"average": average.state_dict()} if average else {}), identity)
        fabric.barrier()

    loss_of = losses.DistillationLoss(recipe.distill_weight) if teacher else _loss_of(recipe, train)
    normalise = Normalise(recipe.preprocessing, fabric.device)
    batches_per_epoch = math.ceil(len(train) / recipe.batch_size)
    total_steps = recipe.epochs * batches_per_epoch

    while progress.epoch < recipe.epochs:
        network.train()
        if recipe.freeze_batch_statistics:
            _freeze_batch_statistics(network)
        batches = epoch_batches(len(train), recipe, progress.epoch)
        shares = [share(batch, fabric.global_rank, fabric.world_size) for batch in batches]
        for part, (images, masks) in _prepared(train, shares, progress.batch, recipe, progress.epoch):
            step = progress.epoch * batches_per_epoch + progress.batch
            rate = learning_rate(recipe, step, total_steps)
            for group in stepping.param_groups:
                group["lr"] = rate
            torch.manual_seed(recipe.seed + 1_000_003 * (step + 1) + fabric.global_rank)  # dropout and stochastic depth

            images, masks = images.to(fabric.device, non_blocking=True), masks.to(fabric.device)
            targets = (masks, teacher(images)) if teacher else (masks,)
            logits = network(normalise(images))
            loss = _mean_loss(loss_of, logits, targets, part)
            stepping.zero_grad()
            fabric.backward(loss)
            mean_loss = float(_reduced(fabric, loss.detach(), "mean"))
            if not math.isfinite(mean_loss):
                names = ", ".join(train.names[index] for index in batches[progress.batch])
                raise InputError(
                    f"the loss is {mean_loss} at step {step} (epoch {progress.epoch + 1}, batch {progress.batch + 1}), cases: {names}; "
                    "look at these images, or lower the learning rate; the weights of the epoch before are kept"
                )
            stepping.step()
            if average is not None:
                average.update_parameters(bare)

            progress.batch += 1
            progress.losses.append(mean_loss)
            hooks.step(progress.epoch, progress.batch, batches_per_epoch, mean_loss)
            if progress.batch < batches_per_epoch and _anyone(fabric, hooks.stop()):
                save()
                return progress

        mean = math.fsum(progress.losses) / len(progress.losses)
        row: dict[str, float | int | None] = {"epoch": progress.epoch + 1, "learning_rate": rate, "loss": mean}
        last = progress.epoch + 1 == recipe.epochs
        due = last or (progress.epoch + 1) % recipe.validate_every == 0
        scores = validate(fabric, measured, recipe, validation) if due else None
        row |= scores or dict.fromkeys(("val_loss", "val_iou", "val_dice"))
        progress.history.append(row)
        progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, []
        if scores and scores["val_iou"] > progress.best_iou:
            progress.best_iou, progress.best_epoch = scores["val_iou"], progress.epoch
            if fabric.is_global_zero:
                hooks.keep_best(measured, row)
        if fabric.is_global_zero:
            checkpoint.write_history(run, progress.history)
        hooks.epoch(row)
        save()
        if not last and _anyone(fabric, hooks.stop()):
            return progress

    if fabric.is_global_zero:
        checkpoint.write_history(run, progress.history)
        hooks.keep_last(bare, average.module if average else None, progress.history[-1])
    return progress


@torch.no_grad()
def validate(fabric: Fabric, network: nn.Module, recipe: Recipe, cases: Cases) -> dict[str, float]:
    """Loss, IoU and Dice on a list at the network's size: means over images of per-image (and per-class) values."""
    network.eval()
    _share_buffers(fabric, network)
    normalise, loss_of = Normalise(recipe.preprocessing, fabric.device), _loss_of(recipe, cases)
    totals = torch.zeros(len(cases), cases.masks.shape[-1], 4, dtype=torch.float64, device=fabric.device)  # loss, tp, fp, fn
    chunks = [np.arange(start, min(start + recipe.batch_size, len(cases))) for start in range(0, len(cases), recipe.batch_size)]
    for indices in chunks[fabric.global_rank :: fabric.world_size]:
        images, masks = validation_batch(cases, indices)
        with fabric.autocast():
            logits = network(normalise(images))
        logits, truth = logits.float(), masks.to(fabric.device).bool()
        predicted = _binarised(logits, recipe.preprocessing)
        rows = torch.from_numpy(indices).to(fabric.device)
        totals[rows, :, 0] = float(loss_of(logits, truth.float()))
        for column, pixels in enumerate((predicted & truth, predicted & ~truth, ~predicted & truth), start=1):
            totals[rows, :, column] = pixels.sum((2, 3)).double()
    loss, tp, fp, fn = _reduced(fabric, totals, "sum").cpu().numpy().transpose(2, 0, 1)
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


def _mean_loss(loss_of: nn.Module, logits: Tensor, targets: tuple[Tensor, ...], part: Share) -> Tensor:
    """This process's loss, weighted so that the mean over processes is the batch's."""
    if not part.count:
        return logits.sum() * 0.0  # takes part in the exchange of gradients and adds nothing to them
    return loss_of(logits[: part.count], *(target[: part.count].float() for target in targets)) * part.weight


def _prepared(cases: Cases, shares: list[Share], first: int, recipe: Recipe, epoch: int):
    """The remaining batches of an epoch, each made in the background while the one before is computed."""
    with ThreadPoolExecutor(1) as background:
        waiting = None
        for part in shares[first:]:
            made, waiting = waiting, (part, background.submit(training_batch, cases, part.indices, recipe, epoch))
            if made:
                yield made[0], made[1].result()
        if waiting:
            yield waiting[0], waiting[1].result()


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=True
        )
    return torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True)


def _average_of(network: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The exponential moving average of parameters and batch statistics, ramping up so that short trainings have one too."""
    if not recipe.ema_decay:
        return None

    def blend(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        decay = min(recipe.ema_decay, (1 + int(updates)) / (10 + int(updates)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:  # counters of batches
            torch._foreach_copy_(averaged, current)

    return AveragedModel(deepcopy(network), multi_avg_fn=blend, use_buffers=True)


def _lay_out_channels_last(network: nn.Module) -> None:
    """Lay the 4-D tensors of a network out as channels_last, in place."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


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
    return bool(_reduced(fabric, torch.tensor(float(stop), device=fabric.device), "sum") > 0)


def _reduced(fabric: Fabric, values: Tensor, operation: str) -> Tensor:
    """Mean or sum over the processes."""
    reduced = fabric.all_reduce(values, reduce_op=operation)
    assert isinstance(reduced, Tensor)  # what goes in as a tensor comes out as one
    return reduced
