"""The comparison of two networks on the same images, on networks simple enough to know the answer."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tests.datasets import write_dataset
from torch import nn

from cmunext.data.layout import Layout
from cmunext.errors import InputError
from cmunext.export.parity import Report, compare, require, rounding
from cmunext.export.samples import MOST, of_dataset, simulated
from cmunext.image.files import read_image, read_mask
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import Metadata
from cmunext.phantom import simulate

GREY = Preprocessing(48, 48, "grey", (0.0,), (1.0,))  # input = pixel / 255
DISKS = Metadata("disks", {"in_channels": 1, "num_classes": 1}, GREY, ("lesion",))


@dataclass
class Brightness:
    """Logits = gain * (pixel / 255 - level), plus `error`."""

    level: float
    gain: float = 20.0
    error: float = 0.0
    metadata: Metadata = DISKS
    name: str = "test"
    precision: str = "float32"
    most: int = 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(batch))
        return (self.gain * (batch - self.level) + self.error).astype(np.float32)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("data") / "disks"
    write_dataset(root, cases=9)  # disks of 100 and more on noise below 90
    return Layout.open(root)


def test_the_same_network_agrees_and_truth_is_measured(layout: Layout) -> None:
    samples = of_dataset(layout, layout.cases, GREY, 1)
    network = Brightness(95 / 255)
    report = compare(Segmenter(network), Segmenter(Brightness(95 / 255)), samples, batch=4)
    assert report == Report("disks", 9, 0.0, 1.0, 1.0, report.iou_torch, report.iou_torch)
    truths = [read_mask(layout.masks(case)[0]) for case in layout.cases]
    masks = [read_image(layout.image(case)) > 95 for case in layout.cases]
    expected = np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, truths, strict=True)])
    assert 0.9 < report.iou_torch == pytest.approx(expected)
    assert network.most == 4


class WithBackground(Brightness):
    """The same beside its opposite, as a background."""

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        lesion = super().__call__(batch)
        return np.concatenate([-lesion, lesion], axis=1)


def test_a_background_is_not_counted(layout: Layout) -> None:
    both = replace(DISKS, arguments={"in_channels": 1, "num_classes": 2}, classes=("background", "lesion"))
    samples = of_dataset(layout, layout.cases[:4], GREY, 1)
    alone = compare(*(Segmenter(Brightness(level)) for level in (95 / 255, 0.5)), samples)
    found = compare(*(Segmenter(WithBackground(level, metadata=both)) for level in (95 / 255, 0.5)), replace(samples, truth=None))
    assert found.mask_iou == alone.mask_iou < 1


def test_differences_are_told(layout: Layout) -> None:
    samples = of_dataset(layout, layout.cases[:4], GREY, 1)
    pixels = samples.images / 255
    reference, other = Brightness(95 / 255), Brightness(0.5, error=0.25)
    report = compare(Segmenter(reference), Segmenter(other), samples)
    first, second = pixels > 95 / 255, 20 * (pixels - 0.5) + 0.25 > 0
    assert report.equal_pixels == pytest.approx((first == second).mean())
    assert report.mask_iou == pytest.approx(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(first, second, strict=True)]))
    largest = np.abs(20 * (pixels - 95 / 255)).max()
    assert report.max_abs_diff == pytest.approx(abs(20 * (95 / 255 - 0.5) + 0.25) / largest, rel=1e-4)
    assert report.iou_file < report.iou_torch


def test_small_logits_are_compared_as_they_are(layout: Layout) -> None:
    samples = of_dataset(layout, layout.cases[:2], GREY, 1)
    report = compare(Segmenter(Brightness(0.4, 0.01)), Segmenter(Brightness(0.4, 0.01, 2e-3)), samples)
    assert report.max_abs_diff == pytest.approx(2e-3, rel=1e-3)


def test_truth_of_other_classes_is_left_out(layout: Layout) -> None:
    assert of_dataset(layout, layout.cases, GREY, 2).truth is None


def test_many_cases_are_thinned_out_evenly(layout: Layout) -> None:
    names = [layout.cases[k % 9] for k in range(2 * MOST)]
    assert len(of_dataset(layout, names, GREY, 1)) == MOST


def test_inputs_are_those_of_the_one_road() -> None:
    preprocessing = Preprocessing(64, 96, "bgr", final_scale=1 / 255)
    samples = simulated(preprocessing, 3)
    batches = list(samples.inputs(2))
    assert [len(batch) for batch in batches] == [2, 1]
    expected = [preprocessing.to_input(simulate(seed, 64, 96)[0]) for seed in range(3)]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(expected))
    assert simulated(Preprocessing(32, 32)).images.shape[1:] == (32, 32, 3)  # less than a phantom can be


@pytest.mark.parametrize(
    ("precision", "changes", "message"),
    [
        ("float32", {"max_abs_diff": 2e-4}, r"differ from PyTorch's by 0\.0002, above 0\.0001"),
        ("float32", {"equal_pixels": 0.9998}, r"on 99\.980 % of pixels, below 99\.99 %"),
        ("float32", {"max_abs_diff": float("nan")}, "differ from PyTorch's by nan"),
        ("float16", {"mask_iou": 0.98}, r"mean IoU with PyTorch's is 0\.9800, below 0\.99"),
        ("int8", {"mask_iou": 0.5}, "mean IoU with PyTorch's"),
        ("int8", {"iou_file": 0.69}, r"IoU to the truth of 0\.6900, and PyTorch 0\.7000"),
    ],
)
def test_what_is_refused(precision: str, changes: dict, message: str) -> None:
    good = {"max_abs_diff": 1e-6, "equal_pixels": 1.0, "mask_iou": 1.0, "iou_torch": 0.7, "iou_file": 0.7}
    require(Report("simulated", 4, **good), precision)
    with pytest.raises(InputError, match=message):
        require(Report("simulated", 4, **{**good, **changes}), precision)


def test_what_rounding_does_to_pytorch_is_allowed_to_the_file() -> None:
    report = Report("simulated", 4, 2e-4, 1.0, 1.0, rounding=1e-4)
    require(report, "float32")
    with pytest.raises(InputError, match=r"by 0\.0002, above 0\.00015"):
        require(replace(report, rounding=5e-5), "float32")


def test_rounding_is_measured_against_float64() -> None:
    class Cancelling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e6) - 1e6  # float32 keeps steps of 1/16 at a million

    samples = simulated(GREY, 1)
    inputs = next(samples.inputs())
    expected = np.abs((inputs + np.float32(1e6)) - np.float32(1e6) - inputs.astype(np.float64)).max()
    assert 0.01 < rounding(Cancelling(), samples) == pytest.approx(expected)
    assert rounding(nn.Identity(), samples) == 0


def test_int8_may_move_logits_and_gain() -> None:
    require(Report("simulated", 4, 0.5, 0.97, 0.95, 0.70, 0.72), "int8")
