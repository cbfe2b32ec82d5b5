"""Running the cells of a grid: several at a time on this machine, or on a Ray cluster. A cell that fails stops no other.

On one machine every slot has one worker process, which runs cell after cell. It ends with its parent, so a killed grid leaves
nothing behind that could write; and a worker that dies (out of memory) costs its cell only.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, suppress
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from cmunext.benchmark.cell import record_failure, run_cell, sweep
from cmunext.benchmark.grid import Cell, Grid
from cmunext.errors import InputError, UsageError
from cmunext.storage import alone_in

Told = Callable[[Cell, str], None]  # a cell, and "started", "done" or why it failed
DIED = "the worker process died, killed or out of memory; give the grid fewer --workers, or see the end of the run's log.txt"
CLUSTER_RETRIES = 5  # times that a cell is run again after its worker or machine was lost


def run_here(grid: Grid, cells: Sequence[Cell], out: Path, workers: int, told: Told) -> dict[str, str]:
    """Run cells in `workers` processes on this machine; gives cell -> why it failed.

    Raises
    ------
    InputError : another process is running a grid in the same folder.
    KeyboardInterrupt : after the running steps were finished and saved. So is whatever else stops the grid: what `told` raises, or an
        OSError where a failure cannot be recorded.
    """
    threads = grid.threads or max(1, (os.cpu_count() or 1) // workers)
    failures: dict[str, str] = {}
    with _only_one(out):
        sweep(out)
        stop = threading.Event()
        slots = [_Slot(stop) for _ in range(workers)]
        free = list(slots)

        def one(cell: Cell) -> None:
            if stop.is_set():
                return
            slot = free.pop()
            try:
                told(cell, "started")
                sentence = slot.run(grid, cell, out, threads)
                if sentence is None or stop.is_set():
                    stop.set()  # it was asked to stop
                else:
                    _conclude(cell, out, sentence, failures, told)
            except BaseException:  # the disk may be full: no other cell would fare better
                stop.set()
                raise
            finally:
                free.append(slot)

        try:
            with ThreadPoolExecutor(workers) as pool:
                try:
                    for future in as_completed([pool.submit(one, cell) for cell in cells]):
                        future.result()
                except BaseException:  # Ctrl-C, or what `one` raised
                    stop.set()
                    for slot in slots:
                        slot.ask_to_stop()
                    raise
        finally:
            for slot in slots:
                slot.close()
        if stop.is_set():
            raise KeyboardInterrupt
    return failures


def run_on_cluster(grid: Grid, cells: Sequence[Cell], out: Path, address: str, told: Told) -> dict[str, str]:
    """Run cells as Ray tasks; gives cell -> why it failed. A cell whose worker or machine is lost is run again, from its checkpoint.

    Parameters
    ----------
    address : "local" starts Ray on this machine alone; "auto" or "HOST:PORT" joins a running cluster, whose machines must see the
        grid's data and `out` under the same paths.

    Raises
    ------
    UsageError : Ray is not installed.
    InputError : another process is running a grid in the same folder.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise UsageError("--cluster needs Ray, which is not installed; run: pip install 'cmunext[cluster]'") from error

    with _only_one(out):
        sweep(out)
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        threads = grid.threads or 1
        gpus = 1 if grid.device == "cuda" or (grid.device == "auto" and ray.cluster_resources().get("GPU")) else 0
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=CLUSTER_RETRIES)(_work)
        failures: dict[str, str] = {}
        try:
            running = {remote.remote(grid, cell, out, threads): cell for cell in cells}
            while running:
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                cell = running.pop(ready)
                try:
                    sentence = ray.get(ready)
                except RayError as error:
                    sentence = f"{DIED} ({type(error).__name__}, {CLUSTER_RETRIES} times)"
                _conclude(
                    cell,
                    out,
                    sentence if sentence is not None else "the worker was asked to stop; run the grid again",
                    failures,
                    told,
                )
        finally:
            ray.shutdown()
    return failures


def _work(grid: Grid, cell: Cell, out: Path, threads: int) -> str | None:
    """Run a cell in this process: "" when it is done, None when it was asked to stop, else why it failed."""
    try:
        return "" if run_cell(grid, cell, out, threads) else None
    except (InputError, OSError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # whatever goes wrong in one cell, the others are done and this one is named
        return f"{type(error).__name__}: {error}"


def _conclude(cell: Cell, out: Path, sentence: str, failures: dict[str, str], told: Told) -> None:
    if sentence:
        failures[cell.identifier] = sentence
        record_failure(cell, out, sentence)
    told(cell, sentence or "done")


class _Slot:
    """A place for one worker process, which is started when it is first needed and again when it has died; no cell begins after `stop`."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.executor: ProcessPoolExecutor | None = None
        self.process: int | None = None

    def run(self, grid: Grid, cell: Cell, out: Path, threads: int) -> str | None:
        try:
            if self.executor is None:
                self.executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent)
                self.process = self.executor.submit(os.getpid).result()
            if self.stop.is_set():  # while the process started, which could not be told
                return None
            return self.executor.submit(_work, grid, cell, out, threads).result()
        except BrokenProcessPool:
            self.close()
            return DIED
        except KeyboardInterrupt:  # the worker was interrupted outside of a training step
            return None

    def ask_to_stop(self) -> None:
        """A training finishes its step and saves; anything else ends."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has just died
                os.kill(self.process, signal.SIGTERM)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True)
        self.executor = self.process = None


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, however that came about."""
    parent = parent_process()
    assert parent is not None  # only called in a worker

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _only_one(out: Path) -> AbstractContextManager[None]:
    """Hold the folder against a second grid."""
    return alone_in(out / "runs", InputError(f"another benchmark is at work in {out}; wait for it, or give another --out"))
