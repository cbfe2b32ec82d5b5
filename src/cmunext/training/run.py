"""One training from names and paths to a run's folder: `recipe.json`, `history.csv`, `last.ckpt` and the weights."""

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

import cmunext
from cmunext import networks, weights
from cmunext.data.dataset import Cases, load_cases
from cmunext.data.layout import Layout
from cmunext.errors import InputError, UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import LEARNT_FROM, Metadata
from cmunext.storage import write_json
from cmunext.training import distill, host, lineage
from cmunext.training.board import Board
from cmunext.training.checkpoint import Progress
from cmunext.training.lineage import Ancestor
from cmunext.training.loop import Hooks, fit
from cmunext.training.recipe import Recipe, from_dict
from cmunext.training.stop import stop_requests

RECIPE_FILE = "recipe.json"
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # where launchers say which of a training's processes this is
BEST, LAST, AVERAGE = "best.safetensors", "last.safetensors", "ema.safetensors"
INTENDED_USE = "Research. Not a medical device, and not validated for any clinical decision."


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


@dataclass(frozen=True)
class Reporter:
    """Who is told what happens: `say` a sentence, `loading` the number of cases to read (gives the function to call after each),
    `step` and `epoch` as in `loop.Hooks`, with the validated row."""

    say: Callable[[str], None]
    loading: Callable[[int], Callable[[], None]]
    step: Callable[[int, int, int, float | None], None]
    epoch: Callable[[dict], None]


def train(task: Task, reporter: Reporter) -> Progress:
    """Train, or go on training, until the last epoch or until Ctrl-C (SIGINT) or SIGTERM, after which the step is finished and saved.

    Returns
    -------
    Progress : complete when its `epoch` equals the recipe's `epochs`.

    Raises
    ------
    UsageError, InputError : see `loop.fit`, `data.layout`, `weights` and `distill`; a run that exists is never touched without `resume`.
    """
    layout = Layout.open(task.dataset)
    train_names, validation_names = layout.read_list(task.train_list), layout.read_list(task.validation_list)
    if both := sorted(set(train_names) & set(validation_names)):
        reporter.say(f"warning: {len(both)} cases stand in both lists, {both[0]!r} among them: validation scores mean little")
    saved = _saved(task)
    recipe = _resolved(task, layout.classes, saved)
    arguments = _arguments(task, recipe, layout.classes)
    structure = {name: value for name, value in arguments.items() if name != "pretrained"}  # the weights hold that file
    _require_fitting_size(task.network, structure, recipe.preprocessing)
    if threads := _threads(task, saved, reporter):
        torch.set_num_threads(threads)
    host.keep_freed_memory()
    class_names = ("lesion",) if layout.classes == 1 else tuple(f"class {number}" for number in range(layout.classes))
    teachers = distill.load_teachers(task.teachers, recipe, class_names)
    start = lineage.load_ancestor(task.start) if task.start else None
    ancestors = (*teachers, *([start] if start else []))
    descent = lineage.describe(teachers, recipe.distill_weight, start)
    lineage.require_same(task.out, descent, saved)

    torch.manual_seed(recipe.seed)
    network = networks.create(task.network, **arguments)
    if start and lineage.start_from(network, start, task.network, structure, recipe.preprocessing):
        reporter.say(f"warning: {start.file} was trained with another normalisation of its images than this recipe's")
    fabric = _fabric(task, recipe)
    now, begun = f"{task.devices} x {fabric.device.type}", saved and f"{saved.get('devices')} x {saved.get('device')}"
    if begun and begun != now and fabric.is_global_zero:
        reporter.say(f"warning: the run was begun on {begun} and goes on on {now}: not to the same bits")
    advance = reporter.loading(len(train_names) + len(validation_names))
    cases = [
        load_cases(layout, names, recipe.preprocessing, masks_under_flips=recipe.augment_before_resize, advance=advance)
        for names in (train_names, validation_names)
    ]
    if layout.classes > 1 and recipe.preprocessing.activation == "softmax":
        _require_partition(cases)
    for ancestor in lineage.require_unseen(ancestors, *cases) if fabric.is_global_zero else ():
        reporter.say(f"warning: {ancestor.file} does not say what it was trained on; if on validation images, scores mean little")
    if fabric.world_size > 1:
        network = _synchronised(network, fabric, reporter)

    identity = _identity(task.network, arguments, recipe, cases, descent)
    provenance = _provenance(task, recipe, cases, ancestors) | descent
    if fabric.is_global_zero:
        task.out.mkdir(parents=True, exist_ok=True)
        if not saved:
            write_json(
                task.out / RECIPE_FILE,
                {
                    **{"network": task.network, "arguments": arguments, "recipe": recipe.to_dict()},
                    **{"dataset": str(task.dataset), "train": train_names, "validation": validation_names},
                    **descent,
                    **{"threads": torch.get_num_threads(), "devices": task.devices, "device": fabric.device.type},
                    "versions": {"cmunext": cmunext.__version__, "torch": torch.__version__, "python": platform.python_version()},
                },
            )
    fabric.barrier()

    board = Board(task.out, fabric.is_global_zero)

    def keep(file: str, kept: nn.Module, row: dict, what: str) -> None:
        training = {
            **provenance,
            "weights": what,
            "epoch": row["epoch"],
            "validation": {k: row[k] for k in ("val_iou", "val_dice")},
        }
        metadata = Metadata(task.network, structure, recipe.preprocessing, class_names, training, task.licence, INTENDED_USE)
        weights.save(task.out / file, kept, metadata)

    measured = "average of weights (EMA)" if recipe.ema_decay else "weights"

    def keep_last(bare: nn.Module, average: nn.Module | None, row: dict) -> None:
        unmeasured = {**row, "val_iou": None, "val_dice": None} if average else row
        keep(LAST, bare, unmeasured, "weights of the last epoch")
        if average is not None:
            keep(AVERAGE, average, row, "average of weights (EMA) at the last epoch")

    def told(row: dict) -> None:
        board.add(row)
        reporter.epoch(row)

    with stop_requests(reporter.say) as stop:
        hooks = Hooks(
            step=reporter.step,
            epoch=told,
            say=reporter.say,
            stop=stop,
            keep_best=lambda kept, row: keep(BEST, kept, row, f"{measured} of the epoch with the best validation IoU"),
            keep_last=keep_last,
        )
        taught = distill.MeanProbability(teachers, recipe.preprocessing.channels, fabric) if teachers else None
        progress = fit(fabric, network, recipe, cases[0], cases[1], task.out, identity, hooks, taught)
    board.close()
    return progress


def _saved(task: Task) -> dict[str, Any] | None:
    """What the folder says of the run that is there, None when there is none. Raises UsageError when it may not be touched."""
    path = task.out / RECIPE_FILE
    if not path.is_file():
        if task.out.exists() and (not task.out.is_dir() or any(task.out.iterdir())) and not task.resume:
            raise UsageError(f"{task.out} exists and is no run; give another --out")
        return None
    if not task.resume and not any(
        os.environ.get(name, "0") != "0" for name in RANKS
    ):  # further processes find what the first wrote
        raise UsageError(f"{task.out} already holds a run; add --resume to go on with it, or give another --out")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give another --out") from error
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise InputError(f"{path} is damaged (it names no recipe); give another --out")
    return content


def _threads(task: Task, saved: dict[str, Any] | None, reporter: Reporter) -> int:
    """Threads of the CPU; 0 leaves them alone. A run goes on with those that it began with, for others sum in another order."""
    begun = (saved or {}).get("threads", 0)
    if task.threads and begun and task.threads != begun:
        reporter.say(
            f"warning: threads is {task.threads}, and the run was begun with {begun}; it goes on with {begun}, to the same bits"
        )
    return begun or task.threads


def _resolved(task: Task, classes: int, saved: dict[str, Any] | None) -> Recipe:
    """The recipe with nothing left to choose: precision, and softmax where the loss has one."""
    recipe = task.recipe
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=_precision(task, saved))
    if recipe.loss == "boundary-dou" and classes > 1:
        recipe = replace(recipe, preprocessing=replace(recipe.preprocessing, activation="softmax"))
    elif recipe.preprocessing.activation == "softmax":
        raise UsageError(
            "recipe preprocessing.activation is softmax, which only loss=boundary-dou with two or more classes trains"
        )
    if saved and json.loads(json.dumps(recipe.to_dict())) != saved.get("recipe"):
        differing = _first_difference(saved.get("recipe", {}), json.loads(json.dumps(recipe.to_dict())))
        raise UsageError(f"{task.out} was begun with another recipe ({differing}); go on with the same, or give another --out")
    return recipe


def _precision(task: Task, saved: dict[str, Any] | None) -> str:
    if saved:
        return from_dict(saved["recipe"]).precision
    if task.device == "cpu" or not torch.cuda.is_available():
        return "bf16-mixed" if host.has_bfloat16() else "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                return _first_difference(old[key], new[key], f"{prefix}{key}.")
            return f"{prefix}{key} was {old.get(key)!r} and is {new.get(key)!r}"
    return "an unknown difference"


def _arguments(task: Task, recipe: Recipe, classes: int) -> dict[str, Any]:
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


def _require_fitting_size(network: str, arguments: dict[str, Any], preprocessing: Preprocessing) -> None:
    """Raise UsageError when the network cannot take the recipe's size; found out without computing anything."""
    shape = (1, preprocessing.in_channels, preprocessing.height, preprocessing.width)
    try:
        with torch.device("meta"), torch.no_grad():
            networks.create(network, **arguments).eval()(torch.empty(shape))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fabric(task: Task, recipe: Recipe) -> Fabric:
    if task.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, but PyTorch sees no GPU here; use --device cpu")
    accelerator = {"cpu": "cpu", "cuda": "cuda", "auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(task.device)
    if accelerator is None:
        raise UsageError(f"device is {task.device!r}; choose auto, cpu or cuda")
    if accelerator == "cuda" and task.devices > torch.cuda.device_count():
        raise UsageError(f"devices is {task.devices}, but there are {torch.cuda.device_count()} GPUs here")
    strategy: Any = "auto"
    if task.devices > 1:
        from lightning.fabric.strategies import DDPStrategy

        strategy = DDPStrategy(find_unused_parameters=True)  # MedT has parameters that nothing uses
    precision: Any = recipe.precision
    fabric = Fabric(accelerator=accelerator, devices=task.devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def _synchronised(network: nn.Module, fabric: Fabric, reporter: Reporter) -> nn.Module:
    if fabric.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    reporter.say("PyTorch has no synchronised BatchNorm on the CPU: each process normalises by the statistics of its own share")
    return network


def _require_partition(cases: list[Cases]) -> None:
    for part in cases:
        for name, mask in zip(part.names, part.masks, strict=True):
            if (mask.sum(-1) != 1).any():
                raise InputError(
                    f"{name!r} has pixels in no class or in several, which a softmax cannot learn; "
                    "give every pixel one class, the background as a class of its own, or train with loss=bce-dice"
                )


def _identity(network: str, arguments: dict[str, Any], recipe: Recipe, cases: list[Cases], descent: dict[str, Any]) -> str:
    told: list[Any] = [network, arguments, recipe.to_dict(), *(part.digest for part in cases)]
    if descent:
        told.append(lineage.digests(descent))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _provenance(task: Task, recipe: Recipe, cases: list[Cases], ancestors: tuple[Ancestor, ...]) -> dict[str, Any]:
    seen = lineage.learnt_from(cases[0], ancestors)
    return {
        "dataset": task.dataset.resolve().name,
        "train_list": task.train_list.name,
        "train_cases": len(cases[0]),
        "validation_list": task.validation_list.name,
        "validation_cases": len(cases[1]),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "recipe": recipe.to_dict(),
        "program": f"cmunext {cmunext.__version__}, torch {torch.__version__}",
        **({} if seen is None else {LEARNT_FROM: seen}),
    }
