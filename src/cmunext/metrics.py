"""Metrics: counts of pixels per image first, then scores, then averages that say over what. NumPy only.

    counts = count(prediction, truth)      # bool N x H x W -> four counts of (N,)
    scores(counts)["iou"]                  # (N,), one an image
    summarise(counts)["per_image"]["iou"]  # mean over images
    summarise(counts)["pooled"]["iou"]     # of the counts summed over images, as if they were one large image

Empty masks
-----------
With truth T and prediction P, as sets of pixels:

    score        formula               T and P empty   T empty, P not   P empty, T not   T everything
    iou          tp / (tp + fp + fn)   1               0                0                defined
    dice, f1     2tp / (2tp + fp + fn) 1               0                0                defined
    sensitivity  tp / (tp + fn)        NaN             NaN              0                defined
    precision    tp / (tp + fp)        NaN             0                NaN              defined
    specificity  tn / (tn + fp)        1               defined          1                NaN
    accuracy     (tp + tn) / all       1               defined          defined          defined

NaN means undefined (nothing over nothing). An average leaves NaN out and says over how many images it is (`per_image_over`).
Dice and F1 are one number by definition: Dice is the overlap's name for it, F1 the harmonic mean of sensitivity and precision.

`paper_scores` is the tuple of the authors' released code, which answers otherwise on empty masks; it is for comparing with
published tables and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmunext.errors import InputError

SCORES = ("iou", "dice", "sensitivity", "precision", "specificity", "accuracy", "f1")


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels counted image by image.

    Attributes
    ----------
    tp, fp, fn, tn : true positive, false positive, false negative and true negative pixels, int64, all of one shape:
        (N,) for N images, (N, K) for K classes, () for one image.
    """

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("tp", "fp", "fn", "tn"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))
        if len({array.shape for array in (self.tp, self.fp, self.fn, self.tn)}) > 1:
            raise InputError(
                f"tp, fp, fn, tn are of {self.tp.shape}, {self.fp.shape}, {self.fn.shape}, {self.tn.shape}; give one shape"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(N,), (N, K) or ()."""
        return self.tp.shape

    def pooled(self) -> "Counts":
        """The counts summed over images: (N, ...) -> (...)."""
        return Counts(self.tp.sum(0), self.fp.sum(0), self.fn.sum(0), self.tn.sum(0))

    def __getitem__(self, index: Any) -> "Counts":
        """Some of the images (and classes), indexed as NumPy does."""
        return Counts(self.tp[index], self.fp[index], self.fn[index], self.tn[index])

    @classmethod
    def stack(cls, counts: Sequence["Counts"]) -> "Counts":
        """Counts of single images, each of shape S -> counts of (N, *S)."""
        return cls(*(np.stack([getattr(one, name) for one in counts]) for name in ("tp", "fp", "fn", "tn")))


def count(prediction: ArrayLike, truth: ArrayLike) -> Counts:
    """Count the pixels of each image (and class).

    Parameters
    ----------
    prediction, truth : bool or integer (anything but 0 is foreground), one shape: H x W, N x H x W or N x K x H x W.

    Returns
    -------
    Counts of (), (N,) or (N, K).

    Raises
    ------
    InputError : on differing shapes, fewer than two axes, no pixels, or floating-point values.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise InputError(f"the prediction is of {prediction.shape} and the truth of {truth.shape}; resize one to the other first")
    if prediction.ndim < 2 or 0 in prediction.shape[-2:]:
        raise InputError(f"masks are of {prediction.shape}; they must end in H x W, both at least 1")
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype.kind not in "biu":
            raise InputError(f"the {name} is {mask.dtype}; give bool or integers (threshold probabilities first)")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    pixels = prediction.shape[-1] * prediction.shape[-2]
    predicted, wanted, both = (np.count_nonzero(mask, axis=(-2, -1)) for mask in (prediction, truth, prediction & truth))
    return Counts(both, predicted - both, wanted - both, pixels - predicted - wanted + both)


def scores(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Every score of `SCORES` in [0, 1], float64 of the counts' shape; NaN where undefined (see the top of this file)."""
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    nothing = tp + fp + fn == 0
    dice = np.where(nothing, 1.0, _ratio(2 * tp, 2 * tp + fp + fn))
    return {
        "iou": np.where(nothing, 1.0, _ratio(tp, tp + fp + fn)),
        "dice": dice,
        "sensitivity": _ratio(tp, tp + fn),
        "precision": _ratio(tp, tp + fp),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "f1": dice.copy(),
    }


def average(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean over the first axis without the NaNs, and over how many: N x ... -> (float64 ..., int64 ...). NaN over none."""
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    over = defined.sum(0)
    return _ratio(np.where(defined, values, 0.0).sum(0), over), np.asarray(over, np.int64)


def summarise(counts: Counts) -> dict[str, Any]:
    """Averages of every score, as plain numbers (NaN where undefined).

    Parameters
    ----------
    counts : of (N,) or (N, K).

    Returns
    -------
    n : N, the number of images.
    per_image : {score: mean over images}, the paper's way of averaging.
    per_image_over : {score: the number of images in that mean}; with classes, of images and classes together.
    pooled : {score: of the counts summed over images}. Large lesions weigh more here.
    classes : only for (N, K): a list of K such records. `per_image` and `pooled` above are then means over classes,
        each class weighing the same, those undefined left out.
    """
    if len(counts.shape) not in (1, 2) or counts.shape[0] == 0:
        raise InputError(f"counts are of {counts.shape}; a summary needs (images,) or (images, classes) with at least one image")
    if len(counts.shape) == 1:
        averages = {name: average(values) for name, values in scores(counts).items()}
        return {
            "n": counts.shape[0],
            "per_image": {name: float(mean) for name, (mean, _) in averages.items()},
            "per_image_over": {name: int(over) for name, (_, over) in averages.items()},
            "pooled": {name: float(value) for name, value in scores(counts.pooled()).items()},
        }
    classes = [summarise(counts[:, k]) for k in range(counts.shape[1])]
    summary: dict[str, Any] = {"n": counts.shape[0]}
    for key in ("per_image", "pooled"):
        summary[key] = {name: float(average([one[key][name] for one in classes])[0]) for name in SCORES}
    summary["per_image_over"] = {name: sum(one["per_image_over"][name] for one in classes) for name in SCORES}
    return {**summary, "classes": classes}


def paper_scores(logits: ArrayLike, target: ArrayLike) -> tuple[float, float, float, float, float, float, float]:
    """The tuple of the authors' released code, oddities included, for comparison with the published tables.

    All pixels given are counted together; the paper's tables are means over images given one at a time. What is odd:

    - IoU is smoothed, (I + 1e-5) / (U + 1e-5), and Dice is 2 IoU / (1 + IoU) of the smoothed one.
    - Truth is "equal to the largest value of the target", for all but IoU and Dice: an empty target counts as all foreground.
    - Denominators of SE, PC and SP hold 1e-6, and F1's too, so that a perfect F1 is 0.9999995. An undefined ratio is 0.

    Parameters
    ----------
    logits : float of any shape; foreground where sigmoid(logits), in that dtype, is greater than 0.5.
    target : of the same shape; foreground where greater than 0.5.

    Returns
    -------
    (iou, dice, SE, PC, F1, SP, ACC): SE is sensitivity, PC precision, SP specificity, ACC accuracy.
    """
    logits, target = _floats(logits), np.asarray(target)
    if logits.shape != target.shape or logits.size == 0:
        raise InputError(f"the logits are of {logits.shape} and the target of {target.shape}; give one shape, not empty")
    prediction, truth = _sigmoid(logits) > 0.5, target > 0.5
    iou = (np.count_nonzero(prediction & truth) + 1e-5) / (np.count_nonzero(prediction | truth) + 1e-5)
    dice = 2 * iou / (iou + 1)

    counts = count(prediction.reshape(1, -1), (truth == truth.max()).reshape(1, -1))
    tp, fp, fn, tn = (int(value) for value in (counts.tp, counts.fp, counts.fn, counts.tn))
    sensitivity, precision, specificity = tp / (tp + fn + 1e-6), tp / (tp + fp + 1e-6), tn / (tn + fp + 1e-6)
    f1 = 2 * sensitivity * precision / (sensitivity + precision + 1e-6)
    return iou, dice, sensitivity, precision, f1, specificity, (tp + tn) / logits.size


def paper_soft_dice(logits: ArrayLike, target: ArrayLike) -> float:
    """Dice of probabilities, as the authors' code has it: (2 sum(p t) + 1e-5) / (sum p + sum t + 1e-5), p = sigmoid(logits)."""
    probability, target = _sigmoid(_floats(logits)).astype(np.float64), np.asarray(target, np.float64)
    if probability.shape != target.shape:
        raise InputError(f"the logits are of {probability.shape} and the target of {target.shape}; give one shape")
    return float((2 * (probability * target).sum() + 1e-5) / (probability.sum() + target.sum() + 1e-5))


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Numerator / denominator, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def _floats(x: ArrayLike) -> NDArray[np.floating]:
    x = np.asarray(x)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32 if x.dtype == np.float16 else np.float64)


def _sigmoid(x: NDArray[np.floating]) -> NDArray[np.floating]:
    exponential = np.exp(-np.abs(x))  # at most 1: never overflows
    return np.where(x >= 0, 1, exponential) / (1 + exponential)
