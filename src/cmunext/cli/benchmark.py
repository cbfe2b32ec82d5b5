"""`cmunext benchmark`: a grid of trainings to scores, tables and figures."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmunext.cli.termination import termination_as_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cmunext.benchmark.grid import Cell, Grid


def benchmark(
    grid: Annotated[Path, typer.Argument(help="Grid file (JSON): datasets, recipes, networks, seeds.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of runs, cells, tables and figures; by default the grid file's.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is missing and how long it may take; do nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time on this machine.")] = 1,
    cluster: Annotated[
        str,
        typer.Option(
            help="Run on Ray instead: local, auto (the cluster that this machine is part of) or HOST:PORT. Its machines must see "
            "the data and --out under the same paths.",
            show_default=False,
        ),
    ] = "",
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Stop after so many minutes, as Ctrl-C does: the same command goes on from there.", show_default=False
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            help="tables: no training; make the tables from the cells that are there. figures: these alone.", show_default=False
        ),
    ] = "",
) -> None:
    """Run a grid of networks, datasets, lists, seeds and recipes, and make the paper's tables and figures of it.

    Kill it anywhere and start it again: only what is missing is done. A cell that fails is recorded and stops no other; the exit
    code is then 1. Where files are missing a table's cell stays empty.
    """
    from cmunext.benchmark.agreement import check_agreement
    from cmunext.benchmark.grid_file import read_grid
    from cmunext.benchmark.results import check_lists
    from cmunext.benchmark.store import Store
    from cmunext.errors import UsageError

    if only not in ("", "tables", "figures"):
        raise UsageError(f"--only is {only!r}; choose tables or figures")
    if cluster and workers > 1:
        raise UsageError("--workers is for one machine and --cluster for many; give one of them")
    chosen = read_grid(grid.absolute() if cluster else grid)
    folder = (out or grid.parent).absolute() if cluster else out or grid.parent
    for cell in chosen.cells:
        check_agreement(chosen, cell, Store(folder))
    check_lists(chosen)
    if dry_run:
        _print_plan(chosen, folder, workers)
        return
    failures = {}
    if not only:
        with termination_as_interrupt(), _time_limit(minutes):
            failures = _run(chosen, folder, workers, cluster)
    if only != "figures":
        from cmunext.benchmark.tables import write_tables

        for path in write_tables(chosen, folder):
            typer.echo(path)
    if only != "tables":
        from cmunext.benchmark.plots import write_figures

        for path in write_figures(chosen, folder):
            typer.echo(path)
    for identifier, sentence in failures.items():
        typer.echo(f"failed: {identifier}: {sentence}", err=True)
    if failures:
        raise typer.Exit(1)


def _run(grid: "Grid", out: Path, workers: int, cluster: str) -> dict[str, str]:
    from cmunext.benchmark.pool import run_here, run_on_cluster
    from cmunext.benchmark.store import Store

    store = Store(out)
    missing = [cell for cell in grid.cells if store.missing(cell)]
    typer.echo(f"{len(grid.cells) - len(missing)} of {len(grid.cells)} cells are done", err=True)
    if not missing:
        return {}

    def told(cell: "Cell", what: str) -> None:
        typer.echo(f"{cell.identifier}: {what}", err=True)

    failures: dict[str, str] = {}
    for generation in sorted({cell.generation for cell in missing}):  # teachers before those they teach
        cells = [cell for cell in missing if cell.generation == generation]
        if cluster:
            failures |= run_on_cluster(grid, cells, out, cluster, told)
        else:
            failures |= run_here(grid, cells, out, workers, told)
    return failures


@contextmanager
def _time_limit(minutes: float | None) -> "Iterator[None]":
    """Interrupt this process, as Ctrl-C does, when the time is over; also where Ctrl-C is ignored, as in the background of a shell."""
    import signal
    import threading
    from _thread import interrupt_main

    if minutes is None:
        yield
        return
    main, over = threading.main_thread().ident, threading.Event()

    def interrupt() -> None:
        over.set()
        if main is not None and hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, signal.SIGINT)  # which also wakes it from waiting for workers
        else:
            interrupt_main()

    timer = threading.Timer(60 * minutes, interrupt)
    timer.daemon = True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if not over.is_set():
            raise
        typer.echo(f"the {minutes:g} minutes are over; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _print_plan(grid: "Grid", out: Path, workers: int) -> None:
    import math

    from cmunext.benchmark.estimate import duration, plans
    from cmunext.benchmark.store import Store

    found = plans(grid, Store(out))
    width = max((len(plan.cell.identifier) for plan in found), default=0)
    for plan in found:
        typer.echo(f"{plan.cell.identifier:{width}}  {duration(plan.seconds):>8} ({plan.basis})  lacks {', '.join(plan.missing)}")
    known = [plan.seconds for plan in found if not math.isnan(plan.seconds)]
    unknown = f" and {len(found) - len(known)} of unknown time" if len(known) < len(found) else ""
    typer.echo(
        f"{len(grid.cells) - len(found)} of {len(grid.cells)} cells are done; the others take about "
        f"{duration(math.fsum(known) / workers)}{unknown}"
    )
