"""The cache of decoded cases: same arrays as OpenCV gives, made anew when a file changes."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.datasets import write_dataset

from cmunext.data.dataset import FLIPS, load_cases
from cmunext.data.layout import Layout
from cmunext.errors import InputError
from cmunext.image.preprocess import Preprocessing

SMALL = Preprocessing(height=32, width=32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_arrays_are_what_opencv_gives(tmp_path: Path) -> None:
    names = write_dataset(tmp_path / "data", cases=3, side=50, classes=2)
    cases = load_cases(Layout.open(tmp_path / "data"), names, SMALL)
    assert cases.images.shape == (3, 32, 32, 3)
    assert cases.masks.shape == (3, 1, 32, 32, 2)
    for index, name in enumerate(names):
        image = cv2.cvtColor(cv2.imread(str(tmp_path / "data/images" / f"{name}.png")), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(cases.images[index], cv2.resize(image, (32, 32)))
        for number in (0, 1):
            mask = cv2.imread(str(tmp_path / "data/masks" / str(number) / f"{name}.png"), cv2.IMREAD_GRAYSCALE) // 255
            expected = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_NEAREST_EXACT)
            np.testing.assert_array_equal(cases.masks[index, 0, :, :, number], expected)


def test_masks_under_flips_are_flipped_before_they_are_resized(tmp_path: Path) -> None:
    (name, *_) = write_dataset(tmp_path / "data", cases=2, side=51)
    masks = load_cases(Layout.open(tmp_path / "data"), [name], SMALL, masks_under_flips=True).masks[0, ..., 0]
    native = cv2.imread(str(tmp_path / "data/masks/0" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) // 255
    for variant, axes in zip(masks, [(), (1,), (0,), (0, 1)], strict=True):
        flipped_first = cv2.resize(np.flip(native, axes).copy(), (32, 32), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(np.flip(variant, axes), flipped_first)
    assert len(FLIPS) == 4
    assert (masks[0] != masks[3]).any(), "51 -> 32 pixels does not sample alike from both ends"


def test_a_changed_file_is_read_again_and_others_are_not(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_dataset(tmp_path / "data", cases=3)
    layout = Layout.open(tmp_path / "data")
    before = load_cases(layout, names, SMALL)
    assert len(list(cache.rglob("*.npz"))) == 3
    time.sleep(0.01)
    cv2.imwrite(str(layout.image(names[1])), np.full((48, 48), 200, np.uint8))
    read = []
    from cmunext.data import dataset

    original = dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: read.append(Path(path).name) or original(path))
    after = load_cases(layout, names, SMALL)
    assert read == [f"{names[1]}.png"]
    assert (after.images[1] == 200).all()
    assert before.digest != after.digest
    np.testing.assert_array_equal(before.images[[0, 2]], after.images[[0, 2]])


def test_a_damaged_cache_entry_is_made_again(tmp_path: Path, cache: Path) -> None:
    names = write_dataset(tmp_path / "data", cases=2)
    layout = Layout.open(tmp_path / "data")
    before = load_cases(layout, names, SMALL)
    for entry in cache.rglob("*.npz"):
        entry.write_bytes(entry.read_bytes()[:100])
    assert load_cases(layout, names, SMALL).digest == before.digest


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    names = write_dataset(tmp_path / "data", cases=2)
    cv2.imwrite(str(tmp_path / "data/masks/0" / f"{names[0]}.png"), np.zeros((10, 48), np.uint8))
    with pytest.raises(InputError, match=r"10 x 48 pixels and its image 48 x 48"):
        load_cases(Layout.open(tmp_path / "data"), names, SMALL)


def test_grey_input_has_one_channel(tmp_path: Path) -> None:
    names = write_dataset(tmp_path / "data", cases=2)
    grey = Preprocessing(height=16, width=32, channels="grey", mean=(0.5,), std=(0.25,))
    assert load_cases(Layout.open(tmp_path / "data"), names, grey).images.shape == (2, 16, 32, 1)
