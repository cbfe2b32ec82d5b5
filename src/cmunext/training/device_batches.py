"""Batches of a list that lies on the device whole, as uint8: a training epoch is augmented there in one go, and nothing is copied
while it runs.

What happens to a case is drawn on the host by the same random numbers as in `batches`, so both give the same views; only the
warp's interpolation (cv2's has 1/32 of a pixel) and the noise, which has a generator of the device, differ.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from cmunext.data.augment import Change, cutmix_rectangle, draw, mask_variant
from cmunext.data.dataset import Cases
from cmunext.training.batches import Batch, Share, cutmix_partner, view_generator
from cmunext.training.recipe import Recipe

CHUNK = 64  # images that are augmented at a time
SHARE_OF_MEMORY = 0.4  # of the device's free memory that lists and an augmented epoch may take


def fits(train: Cases, validation: Cases, recipe: Recipe, device: torch.device) -> bool:
    """True when the device is a GPU with room for both lists and what an epoch makes of the training list."""
    if device.type != "cuda":
        return False
    return bytes_needed(train, validation, recipe) < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]


def bytes_needed(train: Cases, validation: Cases, recipe: Recipe) -> int:
    """What `DeviceBatches` of both lists hold at most, but for what one chunk takes: the lists, and an epoch augmented (and mixed)."""
    epochs = 2 if recipe.augmentation.cutmix else 1
    return sum(cases.images.nbytes + cases.masks.nbytes for cases in (train, validation)) + epochs * (
        train.images.nbytes + train.masks[:, 0].nbytes
    )


@dataclass(frozen=True)
class _Drawn:
    """An epoch's changes as arrays: a row a case.

    Attributes
    ----------
    sampling : float32 N x 2 x 3, from pixel (x, y) of the augmented image to that of the case.
    variants : int64 N, of the mask. levels : uint8 N x 256. noise : float32 N, a standard deviation in grey levels.
    partners : int64 N, the case itself where there is no CutMix. rectangles : int64 N x 4, top, bottom, left, right.
    """

    sampling: NDArray[np.float32]
    variants: NDArray[np.int64]
    levels: NDArray[np.uint8]
    noise: NDArray[np.float32]
    partners: NDArray[np.int64]
    rectangles: NDArray[np.int64]


class DeviceBatches:
    """Batches of a list that lies on `device`."""

    def __init__(self, cases: Cases, device: torch.device):
        self.device = device
        self.images = torch.from_numpy(cases.images).to(device)  # N x H x W x C
        self.masks = torch.from_numpy(cases.masks).to(device)  # N x V x H x W x K
        self.beyond = torch.from_numpy(cases.beyond).to(device)
        self._background = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[_Drawn]] | None = None

    def training(self, shares: Sequence[Share], recipe: Recipe, epoch: int) -> Iterator[Batch]:
        """The shares in order, augmented as in that epoch."""
        images, masks = self.epoch(recipe, epoch)
        for part in shares:
            chosen = torch.from_numpy(part.indices).to(self.device, non_blocking=True)
            yield part, (_channels_first(images[chosen]), _channels_first(masks[chosen]))

    def validation(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and masks as they are."""
        chosen = self._moved(indices)
        return _channels_first(self.images[chosen]), _channels_first(self.masks[chosen, 0])

    def epoch(self, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
        """Every case as it looks in the epoch: images uint8 N x H x W x C and masks uint8 N x H x W x K, in the list's order."""
        drawn = self._drawn(recipe, epoch)
        if epoch + 1 < recipe.epochs:
            self._next = (epoch + 1, self._background.submit(self._draw, recipe, epoch + 1))
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + recipe.epochs_before + epoch)
        views = self._by_chunks(lambda indices: self._augmented(indices, drawn, generator))
        return self._by_chunks(lambda indices: self._mixed(indices, *views, drawn)) if recipe.augmentation.cutmix else views

    def _by_chunks(self, made: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Images and masks of all cases, made for a few at a time and put in their place, so that nothing is held twice."""
        images, masks = torch.empty_like(self.images), torch.empty_like(self.masks[:, 0])
        for start in range(0, len(images), CHUNK):
            end = min(start + CHUNK, len(images))
            images[start:end], masks[start:end] = made(np.arange(start, end))
        return images, masks

    def _drawn(self, recipe: Recipe, epoch: int) -> _Drawn:
        if self._next and self._next[0] == epoch:
            return self._next[1].result()
        return self._draw(recipe, epoch)

    def _draw(self, recipe: Recipe, epoch: int) -> _Drawn:
        cases, variants, height, width = self.masks.shape[:4]
        changes = [draw(recipe.augmentation, (height, width), view_generator(recipe, epoch, case)) for case in range(cases)]
        same = np.arange(256, dtype=np.uint8)
        partners, rectangles = np.arange(cases), np.zeros((cases, 4), np.int64)
        for case in range(cases):
            if mixed := cutmix_partner(recipe, epoch, case, cases):
                partners[case], rectangles[case] = mixed[0], cutmix_rectangle((height, width), mixed[1])
        return _Drawn(
            np.stack([_sampling(change, height, width) for change in changes]),
            np.array([mask_variant(change, variants) for change in changes]),
            np.stack([same if change.levels is None else change.levels for change in changes]),
            np.array([change.noise for change in changes], np.float32),
            partners,
            rectangles,
        )

    def _augmented(self, indices: NDArray[np.int64], drawn: _Drawn, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = self._moved(indices)
        grid = self._grid(self._moved(drawn.sampling[indices]))
        images = _sampled(self.images[chosen], grid, "bilinear")
        masks = self.masks[chosen, self._moved(drawn.variants[indices])] ^ self.beyond  # so that 0 is right beyond the edge
        masks = _sampled(masks, grid, "nearest") ^ self.beyond
        levels = self._moved(drawn.levels[indices])
        images = torch.gather(levels, 1, images.flatten(1).long()).view_as(images)
        if drawn.noise[indices].any():
            noise = torch.randn((*images.shape[:3], 1), generator=generator, device=self.device)
            noise *= self._moved(drawn.noise[indices])[:, None, None, None]
            images = (images + noise).round_().clamp_(0, 255).to(torch.uint8)
        return images, masks

    def _mixed(self, indices: NDArray[np.int64], images: Tensor, masks: Tensor, drawn: _Drawn) -> tuple[Tensor, Tensor]:
        """These of all cases with their rectangles of their partners, as those look without."""
        height, width = images.shape[1:3]
        chosen, partners = self._moved(indices), self._moved(drawn.partners[indices])
        top, bottom, left, right = (edge[:, None] for edge in self._moved(drawn.rectangles[indices]).unbind(1))
        rows, columns = torch.arange(height, device=self.device), torch.arange(width, device=self.device)
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
        return (
            torch.where(inside[..., None], images[partners], images[chosen]),
            torch.where(inside[..., None], masks[partners], masks[chosen]),
        )

    def _grid(self, sampling: Tensor) -> Tensor:
        """Where each pixel comes from, in the coordinates of `grid_sample`: N x H x W x 2."""
        height, width = self.images.shape[1:3]
        x = torch.arange(width, device=self.device, dtype=torch.float32)
        y = torch.arange(height, device=self.device, dtype=torch.float32)[:, None]
        across, down = sampling[:, :, :, None, None].unbind(
            1
        )  # each N x 3 x 1 x 1; no matrix product, which may be of low precision
        sources = [row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in (across, down)]
        return torch.stack([(2 * sources[0] + 1) / width - 1, (2 * sources[1] + 1) / height - 1], -1)

    def _moved(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)


def _sampling(change: Change, height: int, width: int) -> NDArray[np.float32]:
    """2 x 3, from pixel (x, y) of the augmented image to that of the original: the change's steps undone, the last first."""
    matrix = np.eye(3)
    if change.left_to_right:
        matrix = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
    if change.upside_down:
        matrix = np.array([[1, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ matrix
    if change.transposed:
        matrix = matrix @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    if change.matrix is not None:
        matrix = matrix @ np.vstack([cv2.invertAffineTransform(change.matrix), [0, 0, 1]])
    return matrix[:2].astype(np.float32)


def _sampled(stored: Tensor, grid: Tensor, mode: str) -> Tensor:
    """uint8 N x H x W x C, black beyond the edge."""
    found = grid_sample(_channels_first(stored).float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return found.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _channels_first(stored: Tensor) -> Tensor:
    return stored.permute(0, 3, 1, 2)  # still N x H x W x C in memory: channels_last
