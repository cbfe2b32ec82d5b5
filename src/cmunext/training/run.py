"""One training from names and paths to a run's folder: `recipe.json`, `history.csv`, `last.ckpt` and the weights."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

import cmunext
from cmunext import networks, weights
from cmunext.data.dataset import Cases, load_cases
from cmunext.data.layout import CLASSES, Layout
from cmunext.errors import InputError, UsageError
from cmunext.metadata import BACKGROUND, LEARNT_FROM, Metadata, unnamed_classes
from cmunext.storage import alone_in, remove_partial, write_json
from cmunext.training import distill, host, lineage
from cmunext.training.board import FOLDER as BOARD
from cmunext.training.board import Board
from cmunext.training.checkpoint import FILE as CHECKPOINT
from cmunext.training.checkpoint import HISTORY, Progress
from cmunext.training.lineage import Ancestor
from cmunext.training.loop import Hooks, fit
from cmunext.training.recipe import Recipe
from cmunext.training.stop import stop_requests
from cmunext.training.task import RECIPE_FILE, Task, network_arguments, require_fitting_size, resolved_recipe, saved_run

BEST, LAST, AVERAGE = "best.safetensors", "last.safetensors", "ema.safetensors"
INTENDED_USE = "Research. Not a medical device, and not validated for any clinical decision."


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
    saved = saved_run(task)
    recipe = resolved_recipe(task, layout.classes, saved)
    _require_names(task, recipe, layout, saved)
    arguments = network_arguments(task, recipe, layout.classes)
    structure = {name: value for name, value in arguments.items() if name != "pretrained"}  # the weights hold that file
    alone = not recipe.freeze_batch_statistics and 1 in (recipe.batch_size, len(train_names) % recipe.batch_size)
    require_fitting_size(task.network, structure, recipe.preprocessing, single=alone)
    if threads := _threads(task, saved, reporter):
        torch.set_num_threads(threads)
    host.keep_freed_memory()
    teachers = distill.load_teachers(task.teachers, recipe, layout.class_names)
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
    if recipe.preprocessing.activation == "softmax":
        _require_partition(cases)
    unknown = lineage.require_unseen(ancestors, *cases)  # in every process, so that all of them end where one does
    if fabric.is_global_zero:
        _warn_of_leaks(cases, unknown, reporter)
        if start:
            again, ended = lineage.views_again(start, recipe, cases[0])
            if again:
                reporter.say(
                    f"warning: {start.file} learnt with seed {recipe.seed} too, and sees the random views of {again} of its epochs "
                    f"again; set epochs_before={ended} or another seed"
                )
    if fabric.world_size > 1:
        network = _synchronised(network, fabric, reporter)

    identity = _identity(task.network, arguments, recipe, cases, descent)
    provenance = _provenance(task, recipe, cases, ancestors) | descent
    description = {
        **{"network": task.network, "arguments": arguments},
        **{"recipe": recipe.to_dict(), "classes": layout.class_names},
        **{"dataset": str(task.dataset), "train": train_names, "validation": validation_names},
        **descent,
        **{"threads": torch.get_num_threads(), "devices": task.devices, "device": fabric.device.type},
        "versions": {"cmunext": cmunext.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }

    def keep(file: str, kept: nn.Module, row: dict, what: str) -> None:
        training = {
            **provenance,
            "weights": what,
            "epoch": row["epoch"],
            "validation": {k: row[k] for k in ("val_iou", "val_dice")},
        }
        metadata = Metadata(
            task.network, structure, recipe.preprocessing, layout.class_names, training, task.licence, INTENDED_USE
        )
        weights.save(task.out / file, kept, metadata)

    measured = "average of weights (EMA)" if recipe.ema_decay else "weights"

    def keep_last(bare: nn.Module, average: nn.Module | None, row: dict) -> None:
        unmeasured = {**row, "val_iou": None, "val_dice": None} if average else row
        keep(LAST, bare, unmeasured, "weights of the last epoch")
        if average is not None:
            keep(AVERAGE, average, row, "average of weights (EMA) at the last epoch")

    responsible = fabric.is_global_zero
    with (
        _held(task.out, responsible),
        closing(Board(task.out, responsible)) as board,
        stop_requests(reporter.say) as stop,
    ):
        if responsible and not (task.out / CHECKPOINT).is_file():  # what was begun and got nowhere may have been something else
            write_json(task.out / RECIPE_FILE, description)
        fabric.barrier()

        def told(row: dict) -> None:
            board.add(row)
            reporter.epoch(row)

        hooks = Hooks(
            step=reporter.step,
            epoch=told,
            say=reporter.say,
            stop=stop,
            keep_best=lambda kept, row: keep(BEST, kept, row, f"{measured} of the epoch with the best validation IoU"),
            keep_last=keep_last,
        )
        taught = distill.MeanProbability(teachers, recipe.preprocessing.channels, fabric) if teachers else None
        return fit(fabric, network, recipe, cases[0], cases[1], task.out, identity, hooks, taught)


@contextmanager
def _held(run: Path, responsible: bool) -> Iterator[None]:
    """Hold a run's folder against a second training, and clear it of what a killed one left half-written.

    When this one fails before there is anything to go on from, what it wrote and was not there before is removed, so that the folder
    takes the corrected command.
    """
    if not responsible:
        yield
        return
    with alone_in(run, UsageError(f"another training is at work in {run}; wait for it, or give another --out")):
        remove_partial(run)
        before = set(run.iterdir())
        try:
            yield
        except Exception:
            if not (run / CHECKPOINT).is_file():
                for path in {run / name for name in (RECIPE_FILE, HISTORY, BEST)} - before:
                    path.unlink(missing_ok=True)
                if run / BOARD not in before:
                    shutil.rmtree(run / BOARD, ignore_errors=True)
                with suppress(OSError):  # something else lies there
                    run.rmdir()
            raise


def _threads(task: Task, saved: dict[str, Any] | None, reporter: Reporter) -> int:
    """Threads of the CPU; 0 leaves them alone. A run goes on with those that it began with, for others sum in another order."""
    begun = (saved or {}).get("threads", 0)
    if task.threads and begun and task.threads != begun:
        reporter.say(
            f"warning: threads is {task.threads}, and the run was begun with {begun}; it goes on with {begun}, to the same bits"
        )
    return begun or task.threads


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
        from lightning_fabric.strategies import DDPStrategy

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


def _warn_of_leaks(cases: list[Cases], unknown: list[Ancestor], reporter: Reporter) -> None:
    """Say which images are learnt from and validated, by whatever names, and which ancestors do not say what they learnt from."""
    train, validation = cases
    learnt = dict(zip(train.image_digests, train.names, strict=True))
    pairs = zip(validation.names, validation.image_digests, strict=True)
    if both := [(name, learnt[digest]) for name, digest in pairs if digest in learnt]:
        name, twin = both[0]
        called = repr(name) if name == twin else f"{name!r} (in training {twin!r})"
        images = "1 image is" if len(both) == 1 else f"{len(both)} images are"
        reporter.say(f"warning: {images} in both lists, {called} among them: validation scores are too good")
    for ancestor in unknown:
        reporter.say(f"warning: {ancestor.file} does not say what it was trained on; if on validation images, scores mean little")


def _require_names(task: Task, recipe: Recipe, layout: Layout, saved: dict[str, Any] | None) -> None:
    """Raise UsageError when a run was begun with other names, or for a softmax nobody said which class is the background: it would be
    measured and segmented as a lesion."""
    begun = tuple((saved or {}).get("classes", unnamed_classes(layout.classes)))  # earlier versions had no names
    if saved and begun != layout.class_names:
        raise UsageError(
            f"{task.out} was begun with the classes {', '.join(begun)}, and {layout.root} now has {', '.join(layout.class_names)}; "
            f"go on with the same {CLASSES}, or give another --out"
        )
    if recipe.preprocessing.activation == "softmax" and not (layout.root / CLASSES).is_file():
        raise UsageError(
            f"with loss=boundary-dou one of the {layout.classes} classes may be the background; write their names into "
            f"{layout.root / CLASSES}, a line each, that of masks/0 first, and {BACKGROUND} for what is no lesion"
        )


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
    seen = lineage.learnt_from(cases[0].image_digests, ancestors)
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
