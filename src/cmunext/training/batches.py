"""Which cases make a batch, and how they look: pure functions of seed, epoch and case, so a resumed or divided run sees the same."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    # The stream is that of `view_generator` for case 0, as NumPy takes [a, b] and [a, b, 0] for one seed; to part them would change every run.
    order = _random_numbers(recipe, epoch).permutation(cases)
    return [order[start : start + recipe.batch_size] for start in range(0, cases, recipe.batch_size)]


def _random_numbers(recipe: Recipe, epoch: int, *which: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, recipe.epochs_before + epoch, *which])


def share(batch: np.ndarray, rank: int, processes: int) -> Share:
    """The part of a batch that process `rank` of `processes` takes: every case goes to exactly one process."""
    mine = batch[rank::processes]
    weight = len(mine) * processes / len(batch)
    return Share(mine if len(mine) else batch[:1], len(mine), weight)


Batch = tuple[
    Share, tuple[Tensor, Tensor]
]  # and the share's images uint8 N x C x H x W (channels_last) and masks uint8 N x K x H x W


class HostBatches:
    """Batches of a list in host memory, each made in the background while the one before is computed."""

    def __init__(self, cases: Cases):
        self.cases = cases

    def training(self, shares: Sequence[Share], recipe: Recipe, epoch: int) -> Iterator[Batch]:
        """The shares in order, augmented as in that epoch."""
        with ThreadPoolExecutor(1) as background:
            waiting = None
            for part in shares:
                made, waiting = waiting, (part, background.submit(training_batch, self.cases, part.indices, recipe, epoch))
                if made:
                    yield made[0], made[1].result()
            if waiting:
                yield waiting[0], waiting[1].result()

    def validation(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and masks as they are."""
        return _to_tensor(self.cases.images[indices]), _to_tensor(self.cases.masks[indices, 0])


def training_batch(cases: Cases, indices: np.ndarray, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
    """Augmented images uint8 N x C x H x W (channels_last) and masks uint8 N x K x H x W."""
    images, masks = zip(*(_training_view(cases, int(index), recipe, epoch) for index in indices), strict=True)
    return _to_tensor(np.stack(images)), _to_tensor(np.stack(masks))


def view_generator(recipe: Recipe, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of a case's own augmentation in an epoch, whatever batch or process it is in."""
    return _random_numbers(recipe, epoch, index)


def cutmix_partner(recipe: Recipe, epoch: int, index: int, cases: int) -> tuple[int, np.random.Generator] | None:
    """Which other case a case gets a rectangle of in an epoch, and the random numbers of the rectangle; None for no CutMix."""
    if not recipe.augmentation.cutmix or cases < 2:
        return None
    generator = _random_numbers(recipe, epoch, index, CUTMIX)
    if generator.random() >= recipe.augmentation.cutmix:
        return None
    return (index + 1 + int(generator.integers(cases - 1))) % cases, generator  # any but itself, each as likely


def _training_view(cases: Cases, index: int, recipe: Recipe, epoch: int) -> View:
    """How a case looks in an epoch: with CutMix, some of another case as that one looks without."""
    view = _augmented(cases, index, recipe, epoch)
    if mixed := cutmix_partner(recipe, epoch, index, len(cases)):
        other, generator = mixed
        return cutmix(view, _augmented(cases, other, recipe, epoch), generator)
    return view


def _augmented(cases: Cases, index: int, recipe: Recipe, epoch: int) -> View:
    generator = view_generator(recipe, epoch, index)
    return augment(cases.images[index], cases.masks[index], recipe.augmentation, generator, cases.beyond)


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
