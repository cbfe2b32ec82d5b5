"""Batches that are augmented on the device are those that the host makes; run here with the CPU as the device."""

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cmunext.data.dataset import Cases
from cmunext.training import device_batches
from cmunext.training.batches import HostBatches, epoch_batches, share
from cmunext.training.device_batches import SHARE_OF_MEMORY, DeviceBatches, bytes_needed, fits
from cmunext.training.recipe import DEFAULT, Recipe, with_settings

CPU = torch.device("cpu")
AFFINE = ["augmentation.affine=1", "augmentation.rotation=20", "augmentation.scale=1.25", "augmentation.shift=0.1"]
INTENSITY = ["augmentation.intensity=1", "augmentation.brightness=0.1", "augmentation.contrast=1.3", "augmentation.gamma=1.5"]


@pytest.fixture(scope="module")
def cases() -> Cases:
    """Smooth images, as real ones are to a warp, with four different variants of a mask of two classes."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    images, masks = [], []
    for _ in range(10):
        waves = generator.uniform(0.05, 0.25, (3, 2))
        images.append(np.stack([127 + 120 * np.sin(a * x + b * y) for a, b in waves], -1))
        centres = generator.uniform(12, 36, (4, 2, 2))
        masks.append([np.stack([np.hypot(x - u, y - v) < 9 for u, v in variant], -1) for variant in centres])
    names = tuple("abcdefghij")
    return Cases(names, np.array(images).astype(np.uint8), np.array(masks).astype(np.uint8), names, ("0", "1"))


def both(cases: Cases, recipe: Recipe, epoch: int) -> list[tuple[torch.Tensor, ...]]:
    """Image and mask of every batch of an epoch from the host, and from the device: (images, masks) each in one tensor."""
    shares = [share(batch, 0, 1) for batch in epoch_batches(len(cases), recipe, epoch)]
    found = []
    for source in (HostBatches(cases), DeviceBatches(cases, CPU)):
        parts = [views for part, views in source.training(shares, recipe, epoch)]
        found.append(tuple(torch.cat(kind) for kind in zip(*parts, strict=True)))
    return found


@pytest.mark.parametrize("settings", [[], INTENSITY, ["augmentation.cutmix=0.7"], [*INTENSITY, "augmentation.cutmix=1"]])
def test_without_a_warp_every_pixel_is_the_same(cases: Cases, settings: list[str]) -> None:
    recipe = with_settings(DEFAULT, ["batch_size=4", *settings])
    for epoch in range(4):
        host, device = both(cases, recipe, epoch)
        for ours, theirs in zip(device, host, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("classes", [("0", "1"), ("0", "background")])
def test_with_a_warp_images_agree_but_for_the_interpolation(cases: Cases, classes: tuple[str, str]) -> None:
    cases = replace(cases, classes=classes)
    recipe = with_settings(DEFAULT, ["batch_size=4", *AFFINE])
    for epoch in range(4):
        (host, host_masks), (device, device_masks) = both(cases, recipe, epoch)
        difference = (host.int() - device.int()).abs().float()
        assert float(difference.mean()) < 0.5, "of 255 grey levels"
        assert float((host_masks != device_masks).float().mean()) < 0.005
    (plain, _), _ = both(cases, replace(DEFAULT, batch_size=4), 0)
    assert float((host.int() - plain.int()).abs().float().mean()) > 10, "the warp does something"


def test_noise_has_its_deviation_and_is_drawn_anew_each_epoch(cases: Cases) -> None:
    flat = replace(cases, images=np.full_like(cases.images, 128))
    recipe = with_settings(DEFAULT, ["augmentation.intensity=1", "augmentation.noise=0.05"])
    source = DeviceBatches(flat, CPU)
    first, second, again = (source.epoch(recipe, epoch)[0].float() - 128 for epoch in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for index in range(len(flat)):
        assert torch.equal(first[index, ..., 0], first[index, ..., 2]), "alike in every channel"
    deviations = first[..., 0].flatten(1).std(1)
    assert 0 < float(deviations.min()) < float(deviations.max()) < 0.05 * 255 * 1.1
    host, _ = both(flat, recipe, 0)
    expected = sorted(float((image.float() - 128).std()) for image in host[0])
    np.testing.assert_allclose(sorted(deviations.tolist()), expected, rtol=0.1, atol=0.1)


def test_layout_order_and_validation_are_the_hosts(cases: Cases) -> None:
    indices = np.array([7, 2, 5])
    host, device = HostBatches(cases).validation(indices), DeviceBatches(cases, CPU).validation(indices)
    for ours, theirs in zip(device, host, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape == theirs.shape
    (part, (images, _)), *_ = DeviceBatches(cases, CPU).training([share(indices, 0, 1)], DEFAULT, 3)
    assert images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(part.indices, indices)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it held at a time, views of those given not counted."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        # address of a storage -> tensors that show it
        self.holders = Counter(tensor.untyped_storage().data_ptr() for tensor in given)
        self.bytes = self.most = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor)
        return made

    def hold(self, tensor: torch.Tensor) -> None:
        address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.bytes += size if not self.holders[address] else 0
        self.holders[address] += 1
        self.most = max(self.most, self.bytes)
        weakref.finalize(tensor, self.release, address, size)

    def release(self, address: int, size: int) -> None:
        self.holders[address] -= 1
        self.bytes -= size if not self.holders[address] else 0


@pytest.mark.parametrize("more", [[], INTENSITY, [*AFFINE, *INTENSITY, "augmentation.cutmix=1"]])
def test_an_epoch_holds_no_more_than_is_counted(cases: Cases, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    """Seen in what six times these cases take more than three times, for a chunk takes as much in both."""
    monkeypatch.setattr(device_batches, "CHUNK", 2)
    recipe, most, counted = with_settings(DEFAULT, more), [], []
    for repeats in (3, 6):
        names = tuple(f"{name}{repeat}" for repeat in range(repeats) for name in cases.names)
        images, masks = (np.concatenate([array] * repeats) for array in (cases.images, cases.masks))
        listed = replace(cases, names=names, images=images, masks=masks, image_digests=names)
        held = DeviceBatches(listed, CPU)
        with Peak(held.images, held.masks) as peak:
            held.epoch(recipe, 0)
        most.append(peak.most)
        counted.append(bytes_needed(listed, cases, recipe) - images.nbytes - masks.nbytes)
    assert most[1] - most[0] == pytest.approx(counted[1] - counted[0], rel=0.01)


def test_only_a_gpu_with_room_holds_lists(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fits(cases, cases, DEFAULT, CPU)
    needed = bytes_needed(cases, cases, DEFAULT)
    for free, room in ((needed, False), (needed / SHARE_OF_MEMORY + 10, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert fits(cases, cases, DEFAULT, torch.device("cuda", 0)) == room
