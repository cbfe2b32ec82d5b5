"""Losses: 0.5 BCE + Dice (CMUNeXt, equation 7), the same beside a soft target, and Boundary DoU.

All take logits N x K x H x W, are differentiable in them, run on any device and dtype, and reduce in float32 at least.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from cmunext.errors import InputError, UsageError

SMOOTHING = 1e-5  # of both losses, in numerator and denominator


def bce_dice_per_sample(logits: Tensor, target: Tensor) -> Tensor:
    """0.5 BCE + Dice of each sample (CMUNeXt, equation 7): N x K x H x W -> (N,). Their mean is `BCEDiceLoss`.

    BCE is a sample's mean over pixels and channels; Dice is 1 - (2 sum(p t) + 1e-5) / (sum p + sum t + 1e-5) with
    p = sigmoid(logits), each sum over all pixels and channels of the sample together.

    Parameters
    ----------
    logits : float N x K x H x W, any real value.
    target : bool, integer or float of the same shape, in [0, 1]; each channel is one class by itself. Of integers that is looked at.

    Returns
    -------
    float32 (float64 for float64 logits) of (N,).

    Raises
    ------
    InputError : when the shapes differ, or an integer target has other values than 0 and 1.
    """
    if logits.shape != target.shape:
        raise InputError(f"the target is {_shape(target)} and the logits are {_shape(logits)}; give both as N x K x H x W")
    if not target.is_floating_point() and target.dtype != torch.bool and (highest := int(target.max())) > 1:
        raise InputError(f"the target has values up to {highest}; give 0 and 1, such as (mask > 127)")
    logits = _at_least_float32(logits)
    target = target.to(logits.dtype)
    bce = binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
    probability, target = torch.sigmoid(logits).flatten(1), target.flatten(1)
    intersection = (probability * target).sum(1)
    dice = (2 * intersection + SMOOTHING) / (probability.sum(1) + target.sum(1) + SMOOTHING)
    return 0.5 * bce + (1 - dice)


class BCEDiceLoss(nn.Module):
    """0.5 BCE + Dice, the loss of CMUNeXt (equation 7): the mean over samples of `bce_dice_per_sample`, a scalar."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits and target, both N x K x H x W -> scalar. Raises InputError when the shapes differ."""
        return bce_dice_per_sample(logits, target).mean()


class DistillationLoss(nn.Module):
    """(1 - weight) * `BCEDiceLoss` to the truth + weight * `BCEDiceLoss` to a soft target such as a teacher's probability.

    The idea is of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; there is no
    temperature here, the soft target is taken as it is. BCE is least where the network gives the soft target itself; Dice, with
    p t and not p^2 in it, is least where it gives 0 or 1.

    Parameters
    ----------
    weight : of the soft target, in [0, 1].
    """

    def __init__(self, weight: float):
        super().__init__()
        if not 0 <= weight <= 1:
            raise UsageError(f"weight is {weight}; the weight of a soft target lies in 0..1")
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor, soft_target: Tensor) -> Tensor:
        """Logits, target and soft target, all N x K x H x W -> scalar. Raises InputError when the shapes differ."""
        hard = bce_dice_per_sample(logits, target).mean()
        return (1 - self.weight) * hard + self.weight * bce_dice_per_sample(logits, soft_target).mean()


class BoundaryDoULoss(nn.Module):
    """Boundary difference over union (Sun, Luo, Li, "Boundary Difference Over Union Loss For Medical Image Segmentation",
    MICCAI 2023, arXiv 2308.00220).

    For each class, with sums over the whole batch, p the probability and t the target,

        loss = (sum p^2 + sum t^2 - 2 sum(p t) + 1e-5) / (sum p^2 + sum t^2 - (1 + alpha) sum(p t) + 1e-5)
        alpha = min(1 - 2 (C + 1e-5) / (S + 1e-5), 0.8)

    S is the target's area and C the count of its boundary pixels: those whose cross of five pixels is not wholly inside, where
    beyond the image counts as not inside. The result is the mean over all classes, background included. A class that the batch
    does not hold has alpha -1: its loss is 1 whatever is predicted, and teaches nothing.

    Parameters
    ----------
    num_classes : K, the number of channels.
    activation : "softmax" (classes exclude each other) or "sigmoid" (each channel by itself).
        By default sigmoid for K = 1 and softmax for K > 1. Softmax with K = 1 is what the authors' code does with one channel:
        the only class is the background, its probability is 1 everywhere and the gradient is 0, so nothing is learnt from it.
    """

    def __init__(self, num_classes: int = 1, activation: Literal["sigmoid", "softmax"] | None = None):
        super().__init__()
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}; it must be at least 1")
        if activation not in (None, "sigmoid", "softmax"):
            raise UsageError(f"activation is {activation!r}; it must be sigmoid or softmax")
        self.num_classes = num_classes
        self.activation = activation or ("sigmoid" if num_classes == 1 else "softmax")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits and target -> scalar.

        Parameters
        ----------
        logits : float N x K x H x W.
        target : N x K x H x W of 0 and 1 (bool, integer or float; one-hot for softmax),
            or, for softmax, class numbers 0..K-1 as integer N x H x W.

        Raises
        ------
        InputError : on another shape or dtype, or a class number outside 0..K-1.
        """
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise InputError(
                f"the logits are {_shape(logits)}; with num_classes {self.num_classes} give N x {self.num_classes} x H x W"
            )
        logits = _at_least_float32(logits)
        inside = self._one_hot(logits, target)
        probability = torch.sigmoid(logits) if self.activation == "sigmoid" else torch.softmax(logits, dim=1)
        mask = inside.to(logits.dtype)

        per_class = (0, 2, 3)
        intersection = (probability * mask).sum(per_class)
        area = inside.sum(per_class).to(logits.dtype)  # counted as integers: a float32 sum is not exact above 2^24
        squares = probability.square().sum(per_class) + area
        contour = boundary(inside).sum(per_class).to(logits.dtype)
        alpha = (1 - 2 * (contour + SMOOTHING) / (area + SMOOTHING)).clamp(max=0.8)
        difference = squares - 2 * intersection + SMOOTHING
        union = squares - (1 + alpha) * intersection + SMOOTHING
        return (difference / union).mean()

    def _one_hot(self, logits: Tensor, target: Tensor) -> Tensor:
        """The target as bool N x K x H x W."""
        if target.shape == logits.shape:
            return target if target.dtype == torch.bool else target > 0.5
        if self.activation == "sigmoid":
            raise InputError(f"the target is {_shape(target)} and the logits are {_shape(logits)}; give both as N x K x H x W")
        if target.shape != logits.shape[:1] + logits.shape[2:]:
            raise InputError(
                f"the target is {_shape(target)}; logits of {_shape(logits)} need class numbers N x H x W or N x K x H x W"
            )
        if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
            raise InputError(f"the target is {target.dtype}; class numbers must be integers, for example torch.int64")
        low, high = (int(bound) for bound in torch.aminmax(target))
        largest = max(self.num_classes - 1, 1)  # one channel: class 0 is the channel, class 1 is what it leaves out
        if low < 0 or high > largest:
            wrong = low if low < 0 else high
            raise InputError(f"the target holds class {wrong}; with num_classes {self.num_classes} it must be 0..{largest}")
        classes = torch.arange(self.num_classes, device=target.device)[:, None, None]
        return target[:, None] == classes  # NHW -> NKHW


def boundary(inside: Tensor) -> Tensor:
    """Pixels of a mask whose cross of five pixels is not wholly inside it: bool ... x H x W -> bool of the same shape.

    Beyond the image counts as not inside, so a mask that touches the image's edge has its boundary there.
    """
    padded = pad(inside, (1, 1, 1, 1), value=False)
    across = padded[..., 1:-1, :-2] & padded[..., 1:-1, 2:]
    down = padded[..., :-2, 1:-1] & padded[..., 2:, 1:-1]
    return inside & ~(across & down)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape)) or "a scalar"
