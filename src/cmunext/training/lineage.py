"""What a network has learnt from: its own training images, and those of the weights that it started from or was taught by.

Weights carry a digest of every image that they learnt from. Weights that learnt from an image of a run's validation list must
not pass on what they know to that run, or its scores would be too good.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cmunext import weights
from cmunext.data.dataset import Cases
from cmunext.errors import UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.storage import file_sha256
from cmunext.training.recipe import Recipe, from_dict


@dataclass(frozen=True)
class Ancestor:
    """Weights that a run learns from: the file's name, its SHA-256, and what it holds."""

    file: str
    digest: str
    weights: weights.Weights

    def describe(self) -> dict[str, Any]:
        """What a run and its weights say about the ancestor."""
        return {"file": self.file, "sha256": self.digest, "network": self.weights.metadata.network}


def load_ancestor(path: str | os.PathLike[str]) -> Ancestor:
    """Read a weights file. Raises InputError, see `weights.load`."""
    held = weights.load(path)
    return Ancestor(Path(path).name, file_sha256(path), held)


def require_unseen(ancestors: Iterable[Ancestor], train: Cases, validation: Cases) -> list[Ancestor]:
    """The ancestors that do not say what they learnt from, and so cannot be checked.

    An image that the run's own lists train on and validate (list 2 of BUSI has one) is no fault of an ancestor that saw it.

    Raises
    ------
    UsageError : an ancestor says that it learnt from a validation image of the run that the run does not learn from itself.
    """
    ancestors = list(ancestors)
    own = frozenset(train.image_digests)
    for ancestor in ancestors:
        known = (ancestor.weights.metadata.learnt_from or frozenset()) - own
        seen = [name for name, digest in zip(validation.names, validation.image_digests, strict=True) if digest in known]
        if seen:
            raise UsageError(
                f"{ancestor.file} was trained on {len(seen)} of the {len(validation)} validation images of this run, "
                f"{seen[0]!r} among them; give weights that were trained without them"
            )
    return [ancestor for ancestor in ancestors if ancestor.weights.metadata.learnt_from is None]


def learnt_from(own: Iterable[str], ancestors: Iterable[Ancestor]) -> list[str] | None:
    """The image digests of the training images (`own`) and those of the ancestors, sorted; None when an ancestor does not say its own."""
    known = set(own)
    for ancestor in ancestors:
        if ancestor.weights.metadata.learnt_from is None:
            return None
        known |= ancestor.weights.metadata.learnt_from
    return sorted(known)


def describe(teachers: Iterable[Ancestor], distill_weight: float, start: Ancestor | None) -> dict[str, Any]:
    """The entries of recipe.json and of the weights that name teachers and starting weights; nothing without any."""
    told: dict[str, Any] = {}
    if named := [teacher.describe() for teacher in teachers]:
        told["distillation"] = {"weight": distill_weight, "teachers": named}
    if start:
        told["start"] = start.describe()
    return told


def is_told(said: Mapping[str, Any]) -> bool:
    """Whether what a file says of teachers and start has the form of `describe`."""
    try:
        return all(isinstance(one[key], str) for one in (*_teachers(said), *_start(said)) for key in ("file", "sha256"))
    except (AttributeError, TypeError, LookupError):
        return False


def digests(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of `describe` decides a run: the content of the files, by whatever name, and what the teachers weigh."""
    weight = told.get("distillation", {}).get("weight")
    return {
        "weight": weight,
        "teachers": [one["sha256"] for one in _teachers(told)],
        "start": [one["sha256"] for one in _start(told)],
    }


def require_same(run: Path, now: Mapping[str, Any], saved: Mapping[str, Any] | None) -> None:
    """Raise UsageError when the run that is there (its recipe.json as `saved`) was begun with other ancestors than `describe` gives now."""
    if saved is None:
        return
    for option, named in (("--teachers", _teachers), ("--start-from", _start)):
        before, given = named(saved), named(now)
        if [one["sha256"] for one in before] != [one["sha256"] for one in given]:
            told = [", ".join(f"{one['file']} ({one['sha256'][:8]})" for one in some) or "none" for some in (before, given)]
            raise UsageError(
                f"{run} was begun with {option} {told[0]} and is given {told[1]}; go on with the same, or give another --out"
            )


def start_from(
    network: nn.Module, start: Ancestor, name: str, arguments: Mapping[str, Any], preprocessing: Preprocessing
) -> bool:
    """Fill a network with the weights to start from; True when those were trained with another normalisation of the images.

    Raises
    ------
    UsageError : the weights are of another network than `name` with `arguments`.
    """
    held = start.weights.metadata
    if (held.network, dict(held.arguments)) != (name, dict(arguments)):
        raise UsageError(
            f"{start.file} holds {held.network} with {json.dumps(dict(held.arguments))} and this run trains {name} with "
            f"{json.dumps(dict(arguments))}; start from weights of the same network"
        )
    network.load_state_dict(start.weights.network.state_dict())
    return any(
        getattr(held.preprocessing, what) != getattr(preprocessing, what) for what in ("channels", "mean", "std", "final_scale")
    )


def views_again(start: Ancestor, recipe: Recipe, train: Cases) -> tuple[int, int]:
    """How many epochs of the random views that the starting weights learnt from the run shows them again, and where theirs ended: the
    `epochs_before` that shows none.

    Views are functions of seed, epoch and place in the list: there are such epochs where the run trains by the seed of its start on
    images that the start knows, and does not say with `epochs_before` how far that one got.
    """
    held = start.weights.metadata
    said, seen = held.training.get("recipe"), held.learnt_from or frozenset()
    try:
        begun = from_dict(said) if isinstance(said, Mapping) else None
    except UsageError:  # of another program, or a later one
        begun = None
    if begun is None or begun.seed != recipe.seed or seen.isdisjoint(train.image_digests):
        return 0, recipe.epochs_before
    end, own_end = (one.epochs_before + one.epochs for one in (begun, recipe))
    return max(0, min(end, own_end) - max(begun.epochs_before, recipe.epochs_before)), end


def _teachers(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    return said.get("distillation", {}).get("teachers", [])


def _start(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [said["start"]] if "start" in said else []
