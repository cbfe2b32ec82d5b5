"""Losses against the authors' numbers, finite differences, and a plain loop over samples and classes."""

import math

import numpy as np
import pytest
import torch

from cmunext.errors import InputError, UsageError
from cmunext.losses import BCEDiceLoss, BoundaryDoULoss, DistillationLoss, bce_dice_per_sample, boundary
from tests.golden_losses import bce_dice_case, boundary_dou_case, cases

GOLDENS = {group: {case["name"]: case for case in cases(group)} for group in ("bce_dice", "boundary_dou")}


def test_no_golden_case_is_missing():
    assert [len(cases(group)) for group in ("bce_dice", "metrics", "boundary_dou")] == [17, 17, 9]


def check_gradient(case: dict, logits: torch.Tensor) -> None:
    if "grad_l2" not in case:
        return
    gradient = logits.grad.flatten().numpy()
    assert np.linalg.norm(gradient) == pytest.approx(case["grad_l2"], rel=1e-10, abs=1e-18)
    np.testing.assert_allclose(gradient[case["grad_index"]], case["grad_value"], rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("name", GOLDENS["bce_dice"])
def test_bce_dice_golden(name):
    case = GOLDENS["bce_dice"][name]
    logits, target = (torch.from_numpy(array) for array in bce_dice_case(case))
    double = logits.double().requires_grad_()
    loss = BCEDiceLoss()(double, target.double())
    assert loss.item() == pytest.approx(case["loss_float64"], rel=1e-12)
    loss.backward()
    check_gradient(case, double)
    assert BCEDiceLoss()(logits, target).item() == pytest.approx(case["loss_float32"], rel=2e-6)


def test_distillation_by_hand():
    """Two pixels with probabilities 3/4 and 1/2, truth 1 and 0, soft target 0.8 and 0.4."""
    logits = torch.tensor([[[[math.log(3), 0.0]]]], dtype=torch.float64, requires_grad=True)
    truth, soft = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.8, 0.4]]]], dtype=torch.float64)
    to_truth = 0.5 * (math.log(4 / 3) + math.log(2)) / 2 + 1 - 1.5 / 2.25
    to_soft = 0.5 * (0.8 * math.log(4 / 3) + 0.2 * math.log(4) + math.log(2)) / 2 + 1 - 1.6 / 2.45
    loss = DistillationLoss(0.25)(logits, truth, soft)
    assert loss.item() == pytest.approx(0.75 * to_truth + 0.25 * to_soft, abs=1e-5)  # 1e-5: the smoothing of Dice
    assert DistillationLoss(0.0)(logits, truth, soft).item() == BCEDiceLoss()(logits, truth).item()
    assert DistillationLoss(1.0)(logits, truth, soft).item() == BCEDiceLoss()(logits, soft).item()
    assert torch.autograd.gradcheck(lambda x: DistillationLoss(0.25)(x, truth, soft), logits)


@pytest.mark.parametrize("name", GOLDENS["boundary_dou"])
def test_boundary_dou_golden(name):
    case = GOLDENS["boundary_dou"][name]
    logits, target = (torch.from_numpy(array) for array in boundary_dou_case(case))
    classes = case["n_classes"]
    loss = BoundaryDoULoss(num_classes=classes, activation="softmax")
    double = logits.double().requires_grad_()
    value = loss(double, target)
    assert value.item() == pytest.approx(case["loss_float64"], rel=1e-12)
    value.backward()
    check_gradient(case, double)
    assert loss(logits, target).item() == pytest.approx(case["loss_float32"], rel=2e-6)

    one_hot = torch.stack([target == k for k in range(classes)], dim=1)
    assert [[int(boundary(one_hot[:, k]).sum()), int(one_hot[:, k].sum())] for k in range(classes)] == [
        row[:2] for row in case["per_class_boundary_area_alpha"]
    ]
    if classes > 1:
        assert BoundaryDoULoss(num_classes=classes)(logits, target) == loss(logits, target)
        assert torch.equal(loss(logits, one_hot), loss(logits, target))
        assert torch.equal(loss(logits, one_hot.float()), loss(logits, target))


def boundary_dou_by_hand(probability: np.ndarray, target: np.ndarray) -> float:
    """One class, pixel by pixel, from the paper's text."""
    contour = 0
    batch, height, width = target.shape
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                cross = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
                held = sum(0 <= a < height and 0 <= b < width and target[n, a, b] for a, b in cross)
                contour += bool(target[n, i, j]) and held < 5
    alpha = min(2 * (1 - (contour + 1e-5) / (target.sum() + 1e-5)) - 1, 0.8)
    total, overlap = (probability**2).sum() + target.sum(), (probability * target).sum()
    return (total - 2 * overlap + 1e-5) / (total - (1 + alpha) * overlap + 1e-5)


def test_binary_boundary_dou_is_the_foreground_class_with_sigmoid():
    generator = np.random.default_rng(3)
    logits = generator.standard_normal((2, 1, 14, 11))
    target = np.zeros((2, 1, 14, 11))
    target[0, 0, 3:11, 2:9] = 1
    target[1, 0, :6, 4:] = 1
    expected = boundary_dou_by_hand(1 / (1 + np.exp(-logits[:, 0])), target[:, 0])
    loss = BoundaryDoULoss(num_classes=1)
    assert loss(torch.from_numpy(logits), torch.from_numpy(target)).item() == pytest.approx(expected, rel=1e-12)
    assert loss(torch.from_numpy(logits), torch.from_numpy(target > 0)).item() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_classes_are_averaged():
    logits = torch.from_numpy(np.random.default_rng(4).standard_normal((2, 3, 12, 12)))
    target = logits.roll(2, -1) > 0.3
    each = [BoundaryDoULoss(1)(logits[:, k : k + 1], target[:, k : k + 1]) for k in range(3)]
    assert BoundaryDoULoss(3, activation="sigmoid")(logits, target).item() == pytest.approx(float(sum(each)) / 3, rel=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_boundary_dou_gradient_by_finite_differences(num_classes):
    logits = torch.from_numpy(np.random.default_rng(5).standard_normal((2, num_classes, 5, 6))).requires_grad_()
    target = torch.zeros(2, num_classes, 5, 6, dtype=torch.bool)
    target[:, 0] = True
    target[0, :, 1:4, 1:5] = torch.arange(num_classes)[:, None, None] == num_classes - 1
    assert torch.autograd.gradcheck(lambda x: BoundaryDoULoss(num_classes)(x, target), (logits,))


def test_per_sample_values_are_those_of_the_samples_alone():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(5, 3, 9, 7, generator=generator, dtype=torch.float64)
    target = (torch.rand(5, 3, 9, 7, generator=generator) < 0.4).double()
    each = bce_dice_per_sample(logits, target)
    assert each.shape == (5,)
    alone = [BCEDiceLoss()(logits[n : n + 1], target[n : n + 1]).item() for n in range(5)]
    np.testing.assert_allclose(each.numpy(), alone, rtol=1e-12)
    assert BCEDiceLoss()(logits, target).item() == pytest.approx(np.mean(alone), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [BCEDiceLoss(), BoundaryDoULoss(1)])
def test_half_precision_is_reduced_in_float32(dtype, loss):
    # 2 x 300 x 300 foreground pixels: a float16 sum overflows at 65504 and a bfloat16 one stalls at 256
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 1, 300, 300, generator=generator).to(dtype)
    target = torch.ones(2, 1, 300, 300, dtype=dtype)
    value = loss(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.double(), target.double()).item(), rel=1e-5)


@pytest.mark.parametrize("target_dtype", [torch.bool, torch.uint8, torch.float32])
def test_bce_dice_takes_any_target_dtype(target_dtype):
    logits = torch.linspace(-2, 2, 32).reshape(2, 1, 4, 4)
    target = (logits > 0.5).to(target_dtype)
    assert BCEDiceLoss()(logits, target) == BCEDiceLoss()(logits, target.float())


def test_wrong_targets_are_named():
    logits = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InputError, match="2 x 1 x 8 x 8"):
        BCEDiceLoss()(logits, torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match="values up to 255; give 0 and 1"):
        BCEDiceLoss()(logits, torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    with pytest.raises(InputError, match="class 3"):
        BoundaryDoULoss(3)(logits, torch.full((2, 8, 8), 3))
    with pytest.raises(InputError, match="class -1"):
        BoundaryDoULoss(3)(logits, torch.full((2, 8, 8), -1))
    with pytest.raises(InputError, match="float32"):
        BoundaryDoULoss(3)(logits, torch.zeros(2, 8, 8))
    with pytest.raises(InputError, match="N x 2 x H x W"):
        BoundaryDoULoss(2)(logits, torch.zeros(2, 8, 8, dtype=torch.long))
    with pytest.raises(InputError, match="8 x 9"):
        BoundaryDoULoss(3)(logits, torch.zeros(2, 8, 9, dtype=torch.long))
    with pytest.raises(UsageError, match="relu"):
        BoundaryDoULoss(1, activation="relu")
    with pytest.raises(UsageError, match="0"):
        BoundaryDoULoss(0)
