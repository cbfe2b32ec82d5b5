"""Distillation: a network learns from the mean probability of teachers besides the truth (Hinton, Vinyals, Dean, "Distilling the
Knowledge in a Neural Network", 2015, arXiv 1503.02531)."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import interpolate

from cmunext import weights
from cmunext.errors import UsageError
from cmunext.metadata import unnamed_classes
from cmunext.training.batches import Normalise
from cmunext.training.lineage import Ancestor, load_ancestor
from cmunext.training.recipe import Recipe


def load_teachers(files: Iterable[str | os.PathLike[str]], recipe: Recipe, classes: tuple[str, ...]) -> tuple[Ancestor, ...]:
    """Read the teachers of a run, ordered by digest so that their mean does not depend on the order of `files`.

    Raises
    ------
    UsageError : a teacher is missing, given twice, or of other channels, activation or classes than the run; the recipe's loss is not
        bce-dice; or the recipe sets a `distill_weight` and there is no teacher.
    InputError : see `weights.load`.
    """
    teachers = []
    for path in map(Path, files):
        teacher = load_ancestor(path)
        _require_match(path, teacher.weights, recipe, classes)
        teachers.append(teacher)
    teachers.sort(key=lambda teacher: teacher.digest)
    for one, next_one in zip(teachers, teachers[1:], strict=False):
        if one.digest == next_one.digest:
            raise UsageError(f"the teachers {one.file} and {next_one.file} are the same file; give each teacher once")
    if teachers and recipe.loss != "bce-dice":
        raise UsageError(f"recipe loss is {recipe.loss}, which has no form for a teacher's probabilities; set loss=bce-dice")
    if not teachers and recipe.distill_weight != Recipe.distill_weight:
        raise UsageError(f"recipe distill_weight is {recipe.distill_weight}, but there is no teacher; add --teachers FILE")
    return tuple(teachers)


class MeanProbability:
    """The mean of the teachers' probabilities: uint8 N x C x H x W -> float32 N x K x H x W in [0, 1], on the run's device.

    Parameters
    ----------
    teachers : at least one. Each normalises the images by its own preprocessing and runs in eval mode. One of another size than the
        images sees them resized (bilinear, antialiased), and its probabilities are resized back.
    channels : the order of the images' channels, as in `Preprocessing.channels`.
    fabric : the run's, for device and precision.
    """

    def __init__(self, teachers: Sequence[Ancestor], channels: str, fabric: Fabric):
        self.fabric, self.channels = fabric, channels
        self.members = [
            (held.network.to(fabric.device), held.preprocessing, Normalise(held.preprocessing, fabric.device))
            for held in (teacher.weights for teacher in teachers)
        ]

    @torch.no_grad()  # not inference_mode, whose tensors cannot be a target that the backward pass keeps
    def __call__(self, images: Tensor) -> Tensor:
        probabilities = []
        for network, preprocessing, normalise in self.members:
            seen = normalise(images if preprocessing.channels == self.channels else images.flip(1))
            with self.fabric.autocast():
                logits = network(_resized(seen, (preprocessing.height, preprocessing.width)))
            probabilities.append(_resized(torch.sigmoid(logits.float()), images.shape[2:]))
        return torch.stack(probabilities).mean(0)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if maps.shape[2:] == torch.Size(size) else interpolate(maps, list(size), mode="bilinear", antialias=True)


def _require_match(path: Path, held: weights.Weights, recipe: Recipe, classes: tuple[str, ...]) -> None:
    theirs, ours = held.preprocessing, recipe.preprocessing
    if (theirs.channels == "grey") != (ours.channels == "grey"):
        raise UsageError(
            f"the teacher {path} takes {theirs.channels} images and this run {ours.channels} ones; "
            "give a teacher and a recipe that are both grey or both in colour"
        )
    if held.metadata.classes not in (classes, unnamed_classes(len(classes))):
        raise UsageError(
            f"the teacher {path} knows the classes {', '.join(held.metadata.classes)} and this run {', '.join(classes)}; "
            "give a teacher of the same classes"
        )
    if theirs.activation != "sigmoid":
        raise UsageError(
            f"the teacher {path} has the activation {theirs.activation}, and distillation is for sigmoid networks; "
            "give a teacher that was trained with loss=bce-dice"
        )
