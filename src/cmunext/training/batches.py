"""Which cases make a batch, and how they look: pure functions of seed, epoch and case, so a resumed or divided run sees the same."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmunext.data.augment import View, augment, cutmix
from cmunext.data.dataset import Cases
from cmunext.image.preprocess import Preprocessing
from cmunext.training.recipe import Recipe

CUTMIX = 1  # keeps CutMix's random numbers apart from those of the other augmentation, which stays the same with and without it


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Attributes
    ----------
    indices : cases to run through the network; never empty.
    count : how many of them count, from the first; fewer than `indices` only where a batch has fewer cases than there are processes.
    weight : factor on the loss (a mean over `count` cases) that makes the average over processes the mean over the whole batch.
    """

    indices: np.ndarray
    count: int
    weight: float


def epoch_batches(cases: int, recipe: Recipe, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, every case once, as arrays of indices; the last may be smaller."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(cases)
    return [order[start : start + recipe.batch_size] for start in range(0, cases, recipe.batch_size)]


def share(batch: np.ndarray, rank: int, processes: int) -> Share:
    """The part of a batch that process `rank` of `processes` takes: every case goes to exactly one process."""
    mine = batch[rank::processes]
    weight = len(mine) * processes / len(batch)
    return Share(mine if len(mine) else batch[:1], len(mine), weight)


def training_batch(cases: Cases, indices: np.ndarray, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
    """Augmented images uint8 N x C x H x W (channels_last) and masks uint8 N x K x H x W."""
    images, masks = zip(*(_training_view(cases, int(index), recipe, epoch) for index in indices), strict=True)
    return _to_tensor(np.stack(images)), _to_tensor(np.stack(masks))


def _training_view(cases: Cases, index: int, recipe: Recipe, epoch: int) -> View:
    """How a case looks in an epoch, whatever batch or process it is in: with CutMix, some of another case as that one looks."""
    view = _augmented(cases, index, recipe, epoch)
    if recipe.augmentation.cutmix and len(cases) > 1:
        generator = np.random.default_rng([recipe.seed, epoch, index, CUTMIX])
        if generator.random() < recipe.augmentation.cutmix:
            other = (index + 1 + int(generator.integers(len(cases) - 1))) % len(cases)  # any but itself, each as likely
            return cutmix(view, _augmented(cases, other, recipe, epoch), generator)
    return view


def _augmented(cases: Cases, index: int, recipe: Recipe, epoch: int) -> View:
    generator = np.random.default_rng([recipe.seed, epoch, index])
    return augment(cases.images[index], cases.masks[index], recipe.augmentation, generator)


def validation_batch(cases: Cases, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images uint8 N x C x H x W (channels_last) and masks uint8 N x K x H x W, as they are."""
    return _to_tensor(cases.images[indices]), _to_tensor(cases.masks[indices, 0])


class Normalise:
    """uint8 N x C x H x W -> normalised float32 on the device, as `Preprocessing.to_input` does."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        self.device = device
        self.scale, self.offset = (
            torch.from_numpy(values).to(device)[:, None, None] for values in preprocessing.scale_and_offset
        )

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float() * self.scale + self.offset


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)  # NHWC -> NCHW, still NHWC in memory: channels_last
