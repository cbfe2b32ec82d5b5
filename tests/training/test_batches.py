"""Batches: every case once, whatever the number of processes, and the same view of it wherever it is made."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmunext.data.dataset import Cases
from cmunext.training.batches import epoch_batches, share, training_batch
from cmunext.training.recipe import DEFAULT, with_settings


@pytest.mark.parametrize(("cases", "batch_size"), [(452, 8), (9, 4), (3, 8), (17, 16)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_nothing_is_seen_twice_or_missed(cases: int, batch_size: int, processes: int) -> None:
    recipe = replace(DEFAULT, batch_size=batch_size)
    batches = epoch_batches(cases, recipe, epoch=4)
    assert sorted(np.concatenate(batches)) == list(range(cases))
    for batch in batches:
        parts = [share(batch, rank, processes) for rank in range(processes)]
        seen = np.concatenate([part.indices[: part.count] for part in parts])
        assert sorted(seen) == sorted(batch)
        assert all(len(part.indices) for part in parts)
        values = np.random.default_rng(0).random(cases)  # a loss for each case
        local = [part.weight * values[part.indices[: part.count]].mean() if part.count else 0.0 for part in parts]
        assert np.mean(local) == pytest.approx(values[batch].mean(), rel=1e-12)


def test_epochs_differ_and_seeds_repeat() -> None:
    first, second = epoch_batches(40, DEFAULT, 0), epoch_batches(40, DEFAULT, 1)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(epoch_batches(40, DEFAULT, 0)))


def test_epochs_that_were_before_are_not_seen_again() -> None:
    generator = np.random.default_rng(0)
    images, masks = generator.integers(0, 256, (9, 8, 8, 3), np.uint8), generator.integers(0, 2, (9, 1, 8, 8, 1), np.uint8)
    cases = Cases(tuple("abcdefghi"), images, masks, tuple("abcdefghi"), ("lesion",))
    recipe = with_settings(DEFAULT, ["augmentation.cutmix=0.5", "augmentation.noise=0.02", "augmentation.intensity=1"])
    later = with_settings(recipe, ["epochs_before=3"])
    for epoch in range(2):
        orders = epoch_batches(9, later, epoch), epoch_batches(9, recipe, epoch + 3)
        np.testing.assert_array_equal(*map(np.concatenate, orders))
        for now, then in zip(
            training_batch(cases, np.arange(9), later, epoch), training_batch(cases, np.arange(9), recipe, epoch + 3), strict=True
        ):
            np.testing.assert_array_equal(now.numpy(), then.numpy())


def test_cutmix_takes_pixels_of_two_cases_whatever_the_batch() -> None:
    """Case k has grey level k and lesion where k is odd, so an image says which cases it is of, and the mask must agree."""
    levels = np.arange(7, dtype=np.uint8)
    images = np.tile(levels[:, None, None, None], (1, 16, 16, 3))
    cases = Cases(tuple("abcdefg"), images, images[:, None, :, :, :1] % 2, tuple("abcdefg"), ("lesion",))
    recipe = with_settings(DEFAULT, ["augmentation.cutmix=1"])
    partners = set()
    for epoch in range(20):
        mixed, masks = training_batch(cases, levels, recipe, epoch)
        np.testing.assert_array_equal(masks[:, 0].numpy(), mixed[:, 0].numpy() % 2)
        for case, image in enumerate(mixed[:, 0].numpy()):
            others = set(np.unique(image)) - {case}
            assert len(others) <= 1
            partners |= {(case, int(other)) for other in others}
        alone, _ = training_batch(cases, np.array([5, 2]), recipe, epoch)
        np.testing.assert_array_equal(alone.numpy(), mixed[[5, 2]].numpy())
    assert len(partners) > 30, "of the 42 pairs nearly all come up"


def test_cutmix_leaves_the_other_augmentation_as_it_was() -> None:
    generator = np.random.default_rng(0)
    cases = Cases(
        tuple("abcd"),
        generator.integers(0, 256, (4, 8, 8, 3), np.uint8),
        np.ones((4, 1, 8, 8, 1), np.uint8),
        tuple("abcd"),
        ("lesion",),
    )
    without, _ = training_batch(cases, np.arange(4), DEFAULT, epoch=1)
    mixed, _ = training_batch(cases, np.arange(4), with_settings(DEFAULT, ["augmentation.cutmix=1"]), epoch=1)
    for case in range(4):
        from_some = (
            (mixed[case] == without).all(1).any(0)
        )  # at its place, each pixel is of this case or another as both look without
        assert from_some.all()
    assert not torch.equal(mixed, without)


def test_a_case_looks_the_same_in_any_share() -> None:
    generator = np.random.default_rng(0)
    cases = Cases(
        tuple("abcd"),
        generator.integers(0, 256, (4, 8, 8, 3), np.uint8),
        np.ones((4, 1, 8, 8, 1), np.uint8),
        tuple("abcd"),
        ("lesion",),
    )
    whole, _ = training_batch(cases, np.array([0, 1, 2, 3]), DEFAULT, epoch=2)
    part, _ = training_batch(cases, np.array([1, 3]), DEFAULT, epoch=2)
    np.testing.assert_array_equal(whole[[1, 3]].numpy(), part.numpy())
    assert whole.is_contiguous(memory_format=torch.channels_last)
