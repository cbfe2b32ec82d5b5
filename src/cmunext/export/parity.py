"""Does the exported file do what PyTorch does? Both run the same images, and one report says how far they are apart."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cmunext.errors import InputError
from cmunext.export.samples import Samples
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import measured_classes
from cmunext.metrics import count, scores

LOGITS = 1e-4  # float32: largest difference of logits, relative to the largest logit where that is above 1
ROUNDING = 3.0  # float32: ... or this many times what rounding to float32 alone does to PyTorch's logits, where that is more
PIXELS = 0.9999  # float32: smallest share of pixels on which the masks are the same
MASKS: Mapping[str, float] = {"float16": 0.99, "int8": 0.9}  # smallest mean IoU between the two masks of an image
TRUTH = 0.005  # int8, float16: what may be lost of the mean IoU to the truth, where there is a truth
BATCH = 2  # images run together, in a file that takes more than one


@dataclass(frozen=True)
class Report:
    """How far a file is from PyTorch, over `images` images of `source`.

    Attributes
    ----------
    max_abs_diff : largest difference of logits, divided by the largest logit of PyTorch where that is above 1.
    equal_pixels : share of pixels on which the masks are the same.
    mask_iou : mean over images (and classes) of the IoU between the two masks; two empty masks have 1.
    iou_torch, iou_file : mean IoU of either to the truth, at the network's size; None where there is no truth.
    rounding : how far PyTorch in float32 is from PyTorch in float64 (see `rounding`); None where it was not needed.
    """

    source: str
    images: int
    max_abs_diff: float
    equal_pixels: float
    mask_iou: float
    iou_torch: float | None = None
    iou_file: float | None = None
    rounding: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(reference: Segmenter, exported: Segmenter, samples: Samples, batch: int = BATCH) -> Report:
    """Run PyTorch (`reference`) and the file on the same images, `batch` at a time.

    Raises InputError when either gives anything but finite logits of the promised shape.
    """
    size = (samples.preprocessing.height, samples.preprocessing.width)
    difference = largest = 0.0
    masks: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
    for inputs in samples.inputs(batch):
        expected, logits = reference.predict_batch(inputs), exported.predict_batch(inputs)
        difference = max(difference, float(np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        to_mask = samples.preprocessing.to_mask
        masks += [(to_mask(one, size), to_mask(other, size)) for one, other in zip(expected, logits, strict=True)]
    ours, theirs = (np.stack(each) for each in zip(*masks, strict=True))  # N x K x h x w
    equal_pixels = float((ours == theirs).mean())
    kept = measured_classes(reference.metadata.classes)  # a background is easy, and would make up for the others
    ours, theirs = ours[:, kept], theirs[:, kept]
    truth = None if samples.truth is None else samples.truth[..., kept].transpose(0, 3, 1, 2)  # NHWK -> NKHW
    return Report(
        source=samples.source,
        images=len(samples),
        max_abs_diff=difference / max(1.0, largest),
        equal_pixels=equal_pixels,
        mask_iou=_mean_iou(ours, theirs),
        iou_torch=None if truth is None else _mean_iou(ours, truth),
        iou_file=None if truth is None else _mean_iou(theirs, truth),
    )


def rounding(network: nn.Module, samples: Samples) -> float:
    """How far rounding alone takes PyTorch: the largest difference between logits in float32 and in float64, as `max_abs_diff`.

    Networks with random weights, deep ones above all, make 1e-3 of the 1e-7 that every sum is off.
    """
    exact = deepcopy(network).double().eval()
    difference = largest = 0.0
    with torch.inference_mode():
        for inputs in samples.inputs():
            image = torch.from_numpy(inputs)
            expected = exact(image.double())
            difference = max(difference, float((network.eval()(image) - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return difference / max(1.0, largest)


def require(report: Report, precision: str) -> None:
    """Raise InputError when the report is worse than this precision ("float32", "float16" or "int8") may be."""
    if precision == "float32":
        allowed = max(LOGITS, ROUNDING * (report.rounding or 0.0))
        _expect(
            report.max_abs_diff <= allowed,
            f"logits that differ from PyTorch's by {report.max_abs_diff:.2g}, above {allowed:.2g}",
        )
        _expect(
            report.equal_pixels >= PIXELS,
            f"masks that are PyTorch's on {100 * report.equal_pixels:.3f} % of pixels, below {100 * PIXELS:g} %",
        )
        return
    least = MASKS[precision]
    _expect(report.mask_iou >= least, f"masks whose mean IoU with PyTorch's is {report.mask_iou:.4f}, below {least:g}")
    if report.iou_torch is not None and report.iou_file is not None:
        lost = report.iou_torch - report.iou_file
        _expect(
            lost <= TRUTH,
            f"an IoU to the truth of {report.iou_file:.4f}, and PyTorch {report.iou_torch:.4f}: {TRUTH:g} may be lost",
        )


def _expect(good: bool, what: str) -> None:
    if not good:
        raise InputError(f"the exported network gives {what}; nothing was written")


def _mean_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(scores(count(a, b))["iou"].mean())
