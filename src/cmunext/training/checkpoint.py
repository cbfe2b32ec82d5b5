"""`last.ckpt`: the whole state of a training, so that going on from it is the same as never having stopped.

It is the last file that an epoch writes; everything else in the run's folder follows from it or is written again.
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmunext.errors import InputError
from cmunext.storage import write_text
from cmunext.weights import read_pickled, write_pickled

FILE = "last.ckpt"
HISTORY = "history.csv"


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    epoch : epochs that are complete, which is also the number (from 0) of the one in progress.
    batch : batches done of the epoch in progress.
    losses : their losses.
    history : a row for each complete epoch.
    best_iou : the best validation IoU so far (-1 before the first), and `best_epoch` the number of the epoch (from 1) that gave it, 0 for none.
    """

    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    best_iou: float = -1.0
    best_epoch: int = 0


def save(run: Path, progress: Progress, states: Mapping[str, Any], identity: str) -> None:
    """Write `last.ckpt` in one step: progress, the states (state_dicts by name) and the identity of recipe and data. Raises OSError."""
    write_pickled(run / FILE, {"progress": asdict(progress), "identity": identity, **states})


def load(run: Path, identity: str) -> tuple[Progress, dict[str, Any]] | None:
    """Progress and states of a run's `last.ckpt`; None when it has none yet.

    Raises
    ------
    InputError : the file is damaged, or belongs to another recipe, network or data.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        content = read_pickled(path)
        found, progress = content.pop("identity"), Progress(**content.pop("progress"))
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read; delete it to start the run anew") from error
    if found != identity:
        raise InputError(
            f"{path} was made with another network, recipe, list or changed images; go on with the same, or give another --out"
        )
    return progress, content


def write_history(run: Path, history: list[dict[str, float | int | None]]) -> None:
    """Write `history.csv` in one step: a row an epoch, floats so that they read back exactly, an empty cell for what was not measured."""
    names = list(history[0])
    rows = [",".join("" if row[name] is None else repr(row[name]) for name in names) for row in history]
    write_text(run / HISTORY, "\n".join([",".join(names), *rows]) + "\n")


def epochs_written(run: Path) -> int:
    """Rows in the run's `history.csv`, 0 when there is none."""
    path = run / HISTORY
    return max(0, len(path.read_text("utf-8").splitlines()) - 1) if path.is_file() else 0
