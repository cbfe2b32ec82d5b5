"""A grid's cells in worker processes: what stops them, and what keeps a second grid away."""

import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from tests.grids import ONE, THREE, content, write_grid

from cmunext.benchmark import pool
from cmunext.benchmark.grid import Cell, Grid
from cmunext.benchmark.grid_file import read_grid
from cmunext.benchmark.store import Store
from cmunext.errors import InputError


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two cells."""
    return read_grid(write_grid(tmp_path, content(one={"network": ONE}, three={"network": THREE})))


def test_a_stop_that_comes_while_a_worker_starts_is_obeyed(grid, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    started = []

    def told(cell: Cell, what: str) -> None:
        started.append(cell.label)
        if what == "started":  # the process takes longer than this to start
            threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.run_here(grid, grid.cells, tmp_path, 1, told)
    assert started == ["one"]
    assert not Store(tmp_path).run(grid.cells[0]).exists()


def test_a_grid_that_cannot_go_on_runs_no_further_cell(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(pool._Slot, "run", lambda *_: "no such luck")
    monkeypatch.setattr(pool, "record_failure", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    told = []
    with pytest.raises(OSError, match="no space"):
        pool.run_here(grid, grid.cells, tmp_path, 1, lambda cell, what: told.append((cell.label, what)))
    assert told == [("one", "started")]


def test_a_second_grid_is_kept_out_of_the_folder_on_ray_too(grid, tmp_path, monkeypatch):
    ray, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")
    ray.init = lambda **_: pytest.fail("Ray was started beside another grid")
    exceptions.RayError = RuntimeError
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    with pool._only_one(tmp_path):
        with pytest.raises(InputError, match="another benchmark is at work"):
            pool.run_on_cluster(grid, grid.cells, tmp_path, "local", lambda *_: None)
        with pytest.raises(InputError, match="another benchmark is at work"):
            pool.run_here(grid, grid.cells, tmp_path, 1, lambda *_: None)
