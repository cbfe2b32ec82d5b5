"""Published scores and speeds of the networks: what the tables print beside our own. Parameters and GFLOPs stand in `cost`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScores:
    """Mean over images on BUSI (three random splits, best epoch, 256 x 256), per cent; frames per second on an RTX 4090."""

    iou: float
    f1: float
    fps: float | None = None


# Tables 2 and 3 of the CMUNeXt paper (arXiv 2308.01239); mobile-uvit from the authors' companion benchmark.
PUBLISHED_SCORES: Mapping[str, PublishedScores] = {
    "unet": PublishedScores(68.61, 76.97, 139),
    "attention-unet": PublishedScores(68.55, 76.88),
    "unet++": PublishedScores(69.49, 78.06),
    "unet3+": PublishedScores(68.38, 76.88),
    "cmunet": PublishedScores(71.42, 79.49),
    "transunet": PublishedScores(71.39, 79.85),
    "medt": PublishedScores(63.36, 73.37),
    "swin-unet": PublishedScores(63.59, 76.94),
    "unext": PublishedScores(65.04, 74.16, 650),
    "convunext": PublishedScores(67.05, 75.96),
    "cmunext-s": PublishedScores(68.84, 77.33, 657),
    "cmunext": PublishedScores(71.56, 79.86, 471),
    "cmunext-l": PublishedScores(71.18, 79.66, 282),
    "mobile-uvit": PublishedScores(72.88, 81.18),
    "reduced-unet": PublishedScores(67.97, 76.35),
    "cmunext-plain-skip": PublishedScores(70.35, 78.85),
}

# Table 3 of the paper, top to bottom: what the network is there, and its name here.
ABLATION: Mapping[str, str] = {
    "unet": "Original U-Net",
    "reduced-unet": "Reduced U-Net",
    "cmunext-plain-skip": "+ CMUNeXt Block",
    "cmunext": "+ Skip-Fusion Block",
}
