"""One cell of a grid: train (or average) what is not trained, score what is not scored, and keep what is small enough for a repository."""

import logging
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmunext.benchmark.agreement import check_run, plan_of
from cmunext.benchmark.grid import Cell, External, Grid
from cmunext.benchmark.store import CONFIG, FAILED, HISTORY, STEP, Store
from cmunext.errors import InputError
from cmunext.storage import read_json, remove_partial, write_bytes, write_json, write_text


def run_cell(grid: Grid, cell: Cell, out: Path, threads: int) -> bool:
    """Do what a cell lacks; True when it is done, False when it was asked to stop (and what is done is saved).

    Raises
    ------
    InputError, UsageError, OSError : see `training.run.train` and `benchmark.evaluate.evaluate`; also when a case could not be
        measured, because scores of fewer cases would not be comparable.
    """
    from cmunext.training.run import BEST

    store = Store(out)
    folder, run, last = store.cell(cell), store.run(cell), store.last_weights(cell)
    if not store.missing(cell):
        return True
    check_run(cell, store)
    if not (folder / CONFIG).is_file():  # nothing tells what scores without it are of
        for path in store.scores(cell).values():
            path.unlink(missing_ok=True)
    if cell.mean:
        _average(grid, cell, store)
        _use_threads(threads)
    elif not (last.is_file() and (run / BEST).is_file() and (run / HISTORY).is_file()):
        if not _train(grid, cell, store, threads):
            return False
    else:
        _use_threads(threads)
    for name, path in store.scores(cell).items():
        if not path.is_file():
            external = next((one for one in cell.dataset.external if name == f"external-{one.name}"), None)
            _score(grid, cell, external, run / BEST if name == "best" and not cell.mean else last, path)
    if not cell.mean:
        write_bytes(folder / HISTORY, (run / HISTORY).read_bytes())
    lists = {"train_list": cell.lists.train.name, "validation_list": cell.lists.validation.name}
    write_json(folder / CONFIG, {**plan_of(grid, cell), **lists, **({} if cell.mean else _how_trained(run))})
    (folder / FAILED).unlink(missing_ok=True)
    (run / "last.ckpt").unlink(missing_ok=True)  # the largest file, and of no more use
    return True


def record_failure(cell: Cell, out: Path, sentence: str) -> None:
    """Write why a cell failed; the record goes when the cell is done."""
    write_json(Store(out).cell(cell) / FAILED, {"cell": cell.identifier, "error": sentence})


@contextmanager
def grid_networks_trusted(grid: Grid) -> Iterator[None]:
    """Let weights files name the networks of one's own that the grid file names: it ran that very code in training."""
    from cmunext.weights import TRUSTED

    before = os.environ.get(TRUSTED)
    own = sorted(network for network in grid.networks.values() if ":" in network)
    os.environ[TRUSTED] = ",".join([before, *own] if before else own)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TRUSTED)
        else:
            os.environ[TRUSTED] = before


def _train(grid: Grid, cell: Cell, store: Store, threads: int) -> bool:
    from cmunext.training.run import Reporter, train
    from cmunext.training.task import Task

    run, teachers = store.run(cell), tuple(_trained(store, teacher) for teacher in cell.teachers)
    start = _trained(store, cell.start) if isinstance(cell.start, Cell) else cell.start

    # What it announces, precision and processes, stands in the log anyway.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    _make_run_folder(run)
    task = Task(
        cell.dataset.root,
        cell.lists.train,
        cell.lists.validation,
        cell.network,
        cell.recipe,
        run,
        cell.arguments,
        resume=True,
        device=grid.device,
        threads=threads,
        licence=cell.dataset.licence,
        teachers=teachers,
        start=start,
    )
    clock = _Clock(run, cell.recipe.batch_size, threads)
    with (run / "log.txt").open("a", encoding="utf-8") as log:

        def say(sentence: str) -> None:
            print(sentence, file=log, flush=True)

        def epoch(row: dict) -> None:
            clock.keep()
            scores = "" if row["val_iou"] is None else f"  val loss {row['val_loss']:.4f}  IoU {row['val_iou']:.4f}"
            say(f"epoch {row['epoch']:>4}  loss {row['loss']:.4f}{scores}")

        progress = train(task, Reporter(say, lambda _: lambda: None, clock.step, epoch))
    return progress.epoch == cell.recipe.epochs


def _how_trained(run: Path) -> dict[str, Any]:
    """What a training's folder tells beside what was planned."""
    trained = read_json(run / "recipe.json")
    return {
        "train_cases": len(trained["train"]),
        "validation_cases": len(trained["validation"]),
        "precision": trained["recipe"]["precision"],
        "threads": trained["threads"],
        "device": trained["device"],
        "versions": trained["versions"],
    }


def _average(grid: Grid, cell: Cell, store: Store) -> None:
    """Write the mean of the weights of other cells as the cell's own; always anew, since it costs next to nothing."""
    from cmunext.training.average import write_average

    parts = [_trained(store, part) for part in cell.mean]
    _make_run_folder(store.run(cell))
    with grid_networks_trusted(grid):
        write_average(parts, store.last_weights(cell))


def _make_run_folder(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    if not (ignored := run.parent / ".gitignore").is_file():
        write_text(ignored, "*\n")


def _trained(store: Store, cell: Cell) -> Path:
    """The last weights of a cell that another one needs."""
    path = store.last_weights(cell)
    if not path.is_file():
        raise InputError(f"{cell.identifier}, which is needed first, has no weights at {path}; train it again")
    return path


class _Clock:
    """Measures optimisation steps, so that a later estimate of time rests on what this machine did.

    A step lasts from the end of the one before it in its epoch. Where the loss is not known at its end (None) the device is still at work;
    there an epoch is measured, from the end of the one before it, validation and saving included, and divided by its steps.
    """

    def __init__(self, run: Path, batch_size: int, threads: int):
        self.run, self.batch_size, self.threads = run, batch_size, threads
        self.before: tuple[int, float] | None = None  # epoch of the step before, and when it ended
        self.ended: float | None = None  # when the epoch before ended
        self.unknown = 0  # steps of the running epoch whose loss was not known
        self.seconds: list[float] = []

    def step(self, epoch: int, done: int, batches: int, loss: float | None) -> None:
        now = time.perf_counter()
        if loss is None:
            self.unknown += 1
        elif self.before and self.before[0] == epoch:
            self.seconds.append(now - self.before[1])
        self.before = (epoch, now)

    def keep(self) -> None:
        """Write what was measured; called at the end of each epoch."""
        now = time.perf_counter()
        if self.unknown and self.ended is not None:
            self.seconds += [(now - self.ended) / self.unknown] * self.unknown
        self.ended, self.unknown = now, 0
        if self.seconds:
            middle = statistics.median(self.seconds)
            write_json(self.run / STEP, {"seconds": middle, "steps": len(self.seconds), "threads": self.threads})


def _score(grid: Grid, cell: Cell, external: External | None, weights: Path, path: Path) -> None:
    """Score weights on an external set, else on the cell's validation list, of which training made sure that no ancestor saw it."""
    from cmunext.benchmark.evaluate import evaluate
    from cmunext.data.layout import Layout
    from cmunext.inference.segmenter import Segmenter

    root = external.root if external else cell.dataset.root
    layout = Layout.open(root)
    with grid_networks_trusted(grid):
        segmenter = Segmenter.load(weights, backend="torch", device=_inference_device(grid.device))
    names = external.names(layout) if external else layout.read_list(cell.lists.validation)
    found = evaluate(segmenter, layout, names, at=grid.at, surface=grid.surface)  # type: ignore[arg-type]
    if found.failures:
        name, sentence = found.failures[0]
        raise InputError(f"{len(found.failures)} cases of {root} could not be measured, the first {name}: {sentence}")
    if external and found.learnt_from:
        raise InputError(
            f"{weights} learnt from {found.learnt_from} of the {len(names)} images of {root}, so a score there would be too good; "
            f"take {external.name} out of the grid's `external`, and the cell is finished without training again"
        )
    found.write(path)


def _inference_device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def sweep(out: Path) -> None:
    """Remove the temporary files that killed processes left in the folders of cells, tables and figures."""
    for pattern in ("cells/*", "runs/*", "tables", "figures"):
        for folder in out.glob(pattern):
            remove_partial(folder)
