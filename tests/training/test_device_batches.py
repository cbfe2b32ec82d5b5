"""Batches that are augmented on the device are those that the host makes; run here with the CPU as the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmunext.data.dataset import Cases
from cmunext.training.batches import HostBatches, epoch_batches, share
from cmunext.training.device_batches import SHARE_OF_MEMORY, DeviceBatches, fits
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
    return Cases(names, np.array(images).astype(np.uint8), np.array(masks).astype(np.uint8), names)


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


def test_with_a_warp_images_agree_but_for_the_interpolation(cases: Cases) -> None:
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


def test_only_a_gpu_with_room_holds_lists(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fits([cases], CPU)
    held = DeviceBatches(cases, CPU)
    images, masks = held.epoch(with_settings(DEFAULT, INTENSITY), 0)
    of_one = cases.images.nbytes + cases.masks.nbytes + images.nbytes + masks.nbytes  # the list, and an epoch of it
    for free, room in ((2 * of_one, False), (2 * of_one / SHARE_OF_MEMORY + 10, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert fits([cases, cases], torch.device("cuda", 0)) == room
