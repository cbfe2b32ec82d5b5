"""What a training is asked to do, and what it leaves open decided: by the data, by this machine, and by the run that is there already."""

import inspect
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cmunext import networks
from cmunext.errors import InputError, UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.storage import read_json
from cmunext.training import host, lineage
from cmunext.training.recipe import Recipe, from_dict

RECIPE_FILE = "recipe.json"
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # where launchers say which of a training's processes this is


@dataclass(frozen=True)
class Task:
    """What is trained on what, and where it goes.

    Attributes
    ----------
    dataset : folder of the dataset. train_list, validation_list : text files of case names, by path or in the dataset folder.
    network : name in the registry (or "module:callable"); arguments : what it takes besides channels and classes.
    out : the run's folder. resume : go on with the run that is there.
    device : "auto", "cpu" or "cuda"; devices : how many processes (CPU) or GPUs share the batches; threads : of the CPU, 0 for
        PyTorch's own choice (a resumed run takes those that it began with).
    licence : terms of the data, written into the weights.
    teachers : weights files whose mean probability is learnt from too (see `distill` and the recipe's `distill_weight`).
    start : weights file of the same network to start from instead of random weights (fine-tuning); its input may be of another size.
    """

    dataset: Path
    train_list: Path
    validation_list: Path
    network: str
    recipe: Recipe
    out: Path
    arguments: dict[str, Any]
    resume: bool = False
    device: str = "auto"
    devices: int = 1
    threads: int = 0
    licence: str = ""
    teachers: tuple[Path, ...] = ()
    start: Path | None = None


def saved_run(task: Task) -> dict[str, Any] | None:
    """What the folder says of the run that is there, None when there is none. Raises UsageError when it may not be touched."""
    path = task.out / RECIPE_FILE
    if not path.is_file():
        if task.out.exists() and (not task.out.is_dir() or any(task.out.iterdir())) and not task.resume:
            raise UsageError(f"{task.out} exists and is no run; give another --out")
        return None
    further = task.devices > 1 and any(os.environ.get(name, "0") != "0" for name in RANKS)
    if not task.resume and not further:  # further processes find what the first wrote
        raise UsageError(f"{task.out} already holds a run; add --resume to go on with it, or give another --out")
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give another --out") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise InputError(f"{path} is damaged (it names no recipe); give another --out")
    threads = content.get("threads", 0)
    if type(threads) is not int or threads < 0:
        raise InputError(f"{path} is damaged (threads is {threads!r}); give another --out")
    if not lineage.is_told(content):
        raise InputError(f"{path} is damaged (it names no teachers, or no start, where it should); give another --out")
    return content


def resolved_recipe(task: Task, classes: int, saved: dict[str, Any] | None) -> Recipe:
    """The task's recipe with nothing left to choose. Raises UsageError when the run that is there was begun with another."""
    recipe = completed(task.recipe, classes, _precision(task, saved))
    if saved and json.loads(json.dumps(recipe.to_dict())) != saved.get("recipe"):
        differing = _first_difference(saved.get("recipe", {}), json.loads(json.dumps(recipe.to_dict())))
        raise UsageError(f"{task.out} was begun with another recipe ({differing}); go on with the same, or give another --out")
    return recipe


def completed(recipe: Recipe, classes: int, precision: str) -> Recipe:
    """The recipe with `precision` where it says auto, and with a softmax where its loss has one. Raises UsageError for any other softmax."""
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=precision)
    if recipe.loss == "boundary-dou" and classes > 1:
        return replace(recipe, preprocessing=replace(recipe.preprocessing, activation="softmax"))
    if recipe.preprocessing.activation == "softmax":
        raise UsageError(
            "recipe preprocessing.activation is softmax, which only loss=boundary-dou with two or more classes trains"
        )
    return recipe


def _precision(task: Task, saved: dict[str, Any] | None) -> str:
    if saved:
        return from_dict(saved["recipe"]).precision
    if task.device == "cpu" or not torch.cuda.is_available():
        return "bf16-mixed" if host.has_bfloat16() else "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                return _first_difference(old[key], new[key], f"{prefix}{key}.")
            return f"{prefix}{key} was {old.get(key)!r} and is {new.get(key)!r}"
    return "an unknown difference"


def network_arguments(task: Task, recipe: Recipe, classes: int) -> dict[str, Any]:
    """What the network is built with: channels and classes from recipe and data, `image_size` for those that take one."""
    given_by_data = {"in_channels": recipe.preprocessing.in_channels, "num_classes": classes}
    for name, value in given_by_data.items():
        if task.arguments.get(name, value) != value:
            raise UsageError(
                f"the network argument {name} is {task.arguments[name]!r}, and recipe and masks make it {value}; leave it out"
            )
    arguments = {**given_by_data, **task.arguments}
    if "image_size" in inspect.signature(networks.builder(task.network)).parameters:
        arguments.setdefault("image_size", recipe.preprocessing.height)
    return arguments


def require_fitting_size(network: str, arguments: dict[str, Any], preprocessing: Preprocessing, single: bool) -> None:
    """Raise UsageError when the network cannot take the recipe's size, or not learn from a `single` image of it; computes nothing."""
    shape = (1, preprocessing.in_channels, preprocessing.height, preprocessing.width)
    with torch.device("meta"), torch.no_grad():
        try:
            built, image = networks.create(network, **arguments), torch.empty(shape)
            built.eval()(image)
        except ValueError as error:
            raise UsageError(str(error)) from error
        try:
            if single:
                built.train()(image)
        except ValueError as error:  # a norm over one number
            raise UsageError(
                f"at {shape[2]} x {shape[3]} a batch of a single image is too small for the norms of {network}; give a larger size, or a "
                "batch_size that leaves no image alone"
            ) from error
