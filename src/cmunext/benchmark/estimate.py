"""How long the missing part of a grid will take: from steps that were measured, else from multiply-accumulates."""

import inspect
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from cmunext.benchmark.grid import Cell, Grid
from cmunext.benchmark.store import STEP, Store
from cmunext.data.layout import list_entries
from cmunext.errors import InputError
from cmunext.storage import read_json

ASSUMED_RATE = 30e9  # multiply-accumulates a second and thread, where nothing was measured: a recent core with bfloat16
TRAINING, SCORING = (
    3.0,
    1.5,
)  # an optimisation step costs about three forward passes an image, scoring with overheads one and a half


@dataclass(frozen=True)
class Plan:
    """What is left of a cell.

    Attributes
    ----------
    missing : names of the files that it lacks.
    seconds : estimated, of one worker; NaN where neither lists nor measurements tell.
    basis : "measured" (its own steps), "scaled" (steps of other cells, by multiply-accumulates) or "assumed" (a nominal rate).
    """

    cell: Cell
    missing: tuple[str, ...]
    seconds: float
    basis: str


def plans(grid: Grid, store: Store) -> list[Plan]:
    """The cells that lack something, each with an estimate of time."""
    lacking = [(cell, tuple(path.name for path in store.missing(cell))) for cell in grid.cells]
    rate, basis = _rate(grid.cells, store)
    found = []
    for cell, missing in lacking:
        if not missing:
            continue
        measured = _measured_step(store, cell)
        step = measured if measured is not None else _work(cell) / rate
        steps, scored = _amounts(grid, cell)
        seconds = step * (steps + scored / cell.recipe.batch_size * SCORING / TRAINING)
        found.append(Plan(cell, missing, seconds, "measured" if measured is not None else basis))
    return found


def duration(seconds: float) -> str:
    """Seconds for reading."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rate(cells: Iterable[Cell], store: Store) -> tuple[float, str]:
    """Multiply-accumulates a second of this machine's training: the middle of what was measured, else an assumption."""
    measured = ((cell, step) for cell in cells if (step := _measured_step(store, cell)))
    rates = sorted(rate for cell, step in measured if not math.isnan(rate := _work(cell) / step))
    return (rates[len(rates) // 2], "scaled") if rates else (ASSUMED_RATE, "assumed")


def _measured_step(store: Store, cell: Cell) -> float | None:
    path = store.run(cell) / STEP
    if not path.is_file():
        return None
    try:
        return float(read_json(path)["seconds"])
    except (ValueError, KeyError, TypeError):  # damaged: as if it were not there
        return None


def _amounts(grid: Grid, cell: Cell) -> tuple[float, float]:
    """Optimisation steps, and images to be run through the network without gradients."""
    try:
        train, validation = len(list_entries(cell.lists.train)), len(list_entries(cell.lists.validation))
    except InputError:  # no such list here; running the cell will say so
        return math.nan, math.nan
    recipe = cell.recipe
    if cell.mean:
        return 0, validation
    validations = math.ceil(recipe.epochs / recipe.validate_every)
    return recipe.epochs * math.ceil(train / recipe.batch_size), validation * (validations + 2)


def _work(cell: Cell) -> float:
    """Multiply-accumulates of one optimisation step."""
    arguments = json.dumps(cell.arguments, sort_keys=True)
    size = cell.recipe.preprocessing
    return TRAINING * cell.recipe.batch_size * _macs(cell.network, arguments, size.in_channels, size.height, size.width)


@cache
def _macs(network: str, arguments: str, channels: int, height: int, width: int) -> float:
    chosen = json.loads(arguments)
    try:
        return _counted(network, chosen, channels, height, width)
    except (ValueError, TypeError, RuntimeError):  # it cannot be built, or not for this size: the cell will fail and say why
        return math.nan


def _counted(network: str, chosen: dict, channels: int, height: int, width: int) -> int:
    import torch

    from cmunext import networks
    from cmunext.benchmark.cost import strict_macs

    if "image_size" in inspect.signature(networks.builder(network)).parameters:
        chosen.setdefault("image_size", height)
    with torch.device("meta"):
        module = networks.create(network, in_channels=channels, **chosen).eval()
        return strict_macs(module, torch.zeros(1, channels, height, width))
