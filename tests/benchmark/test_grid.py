"""A grid of tiny trainings: what is missing is done, what fails is named, and a killed grid ends in the same files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.datasets import write_dataset
from tests.grids import ONE, THREE, content, digests, write_grid

from cmunext.benchmark import cell
from cmunext.benchmark.agreement import check_agreement
from cmunext.benchmark.cell import run_cell
from cmunext.benchmark.estimate import duration, plans
from cmunext.benchmark.grid_file import read_grid
from cmunext.benchmark.results import scores_of
from cmunext.benchmark.store import Store
from cmunext.cli.main import main
from cmunext.errors import InputError, UsageError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_cells_are_laid_out_in_order_with_overrides(tmp_path):
    values = content(small={"network": THREE}, large={"network": ONE, "set": {"size": 48}})
    values["seeds"] = [1, 2]
    values["recipes"]["paper"] = {"base": "paper", "set": {"epochs": 7}}
    grid = read_grid(write_grid(tmp_path, values))
    assert [cell.identifier for cell in grid.cells] == [
        f"disks-1-{label}-{recipe}-seed{seed}" for recipe in ("short", "paper") for label in ("small", "large") for seed in (1, 2)
    ]
    by_name = {cell.identifier: cell.recipe for cell in grid.cells}
    assert (by_name["disks-1-small-short-seed2"].preprocessing.height, by_name["disks-1-small-short-seed2"].seed) == (32, 2)
    assert by_name["disks-1-large-short-seed1"].preprocessing.width == 48
    paper = by_name["disks-1-large-paper-seed1"]
    assert (paper.epochs, paper.name, paper.preprocessing.height) == (7, "paper", 48)
    assert paper.preprocessing.final_scale == pytest.approx(1 / 255)  # the paper's double normalisation is kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "unknown entry 'colour'"),
        ({"seeds": []}, "seeds of"),
        ({"seeds": [True]}, "seeds of"),
        ({"seeds": [1, 1]}, "give each once"),
        ({"networks": {}}, "networks of .* is empty"),
        ({"reference": "nobody"}, "'nobody'"),
        ({"at": "half"}, "'half'"),
        ({"reference": ["x"]}, "reference of"),
        ({"threads": "two"}, "threads in .* is 'two'"),
        ({"threads": None}, "threads in .* is None"),
        ({"threads": -2}, "threads in .* is -2"),
        ({"surface": "no"}, "surface in .* choose one of false, true"),
        ({"device": "tpu"}, "choose one of auto, cpu, cuda"),
        ({"recipes": {"x": {"set": {"epoch": 3}}}}, "no setting 'epoch'"),
        ({"recipes": {"x": {"base": "best"}}}, "no recipe"),
        ({"recipes": {"x": {"base": ["strong"]}}}, "give it as text"),
        (
            {"datasets": {"d": {"root": "data", "lists": {"1": {"train": "a", "val": "b"}}, "u_score": ["a", 1]}}},
            "two rising IoUs",
        ),
        ({"recipes": {"x": {"set": {"seed": 3}}}}, "has seed, .* give it as the grid's `seeds`"),
        ({"networks": {"x": {"network": ONE, "set": {"name": "y"}}}}, "has name"),
        ({"networks": {"x": {"size": 3}}}, "unknown entry 'size'"),
        ({"datasets": {"d": {"root": "data", "lists": {"1": {"train": "train.txt"}}}}}, "a path in"),
        ({"networks": {"a:b": {}, "a/b": {}}}, "several cells called"),
    ],
)
def test_wrong_grids_are_refused(tmp_path, change, words):
    with pytest.raises(UsageError, match=words):
        read_grid(write_grid(tmp_path, content(a={"network": ONE}) | change))


def test_a_grid_that_is_not_json_or_not_there(tmp_path):
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_grid(tmp_path / "grid.json")
    with pytest.raises(UsageError, match="is not a file"):
        read_grid(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("clean", "groups", "words"),
    [
        ("d1\nnobody\n", "", "names 'nobody', which is not in the list"),
        (" \n", "", "names no case"),
        (None, "", "clean.txt is not a file"),
        ("", "case,patient\nd1,7\n", "gives no group for 'd1'"),
        ("", None, "groups.csv is not a file"),
    ],
)
def test_what_only_the_tables_need_is_checked_before_anything_is_trained(tmp_path, capsys, clean, groups, words):
    values = content(a={"network": ONE})
    dataset = values["datasets"]["disks"]
    path = write_grid(tmp_path, values)
    validation = (tmp_path / "data" / "val.txt").read_text().splitlines()
    for text, name, entry in ((clean, "clean.txt", dataset["lists"]["1"]), (groups, "groups.csv", dataset)):
        if text != "":
            entry[name.split(".")[0]] = name
        if text:
            (tmp_path / name).write_text(text.replace("d1", validation[0]))
    write_grid(tmp_path, values)
    assert main(["benchmark", str(path)]) in (1, 2)
    assert words.replace("d1", validation[0]) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cells").exists()
    assert not (tmp_path / "runs").exists()


def test_durations():
    assert [duration(seconds) for seconds in (12, 300, 7200, float("nan"))] == ["12 s", "5 min", "2.0 h", "unknown"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, int]:
    """A grid of two good networks, one that cannot be built and one that kills its process; and the exit code of its run."""
    folder = tmp_path_factory.mktemp("grid")
    values = content(
        bad={"network": "tests.tiny_training:failing"},
        dying={"network": "tests.tiny_training:Dying"},
        three={"network": THREE},
        one={"network": ONE, "set": {"size": 48}},
    )
    values["datasets"]["disks"]["external"] = {"some": {"root": "other", "list": "train.txt"}, "whole": {"root": "other"}}
    path = write_grid(folder, values)
    write_dataset(folder / "other", seed=5)
    before = os.environ.get("CMUNEXT_CACHE")
    os.environ["CMUNEXT_CACHE"] = str(folder / "cache")
    try:
        code = main(["benchmark", str(path), "--out", str(folder / "out")])
    finally:
        os.environ.pop("CMUNEXT_CACHE")
        if before:
            os.environ["CMUNEXT_CACHE"] = before
    return folder, code


def test_failed_cells_are_recorded_and_stop_no_other(finished):
    folder, code = finished
    assert code == 1
    errors = {
        path.parent.name.split("-")[2]: json.loads(path.read_text())["error"] for path in folder.glob("out/cells/*/failed.json")
    }
    assert errors.keys() == {"bad", "dying"}
    assert errors["bad"] == "RuntimeError: no such luck"
    assert "died" in errors["dying"]
    grid = read_grid(folder / "grid.json")
    store = Store(folder / "out")
    assert {cell.label for cell in grid.cells if not store.missing(cell)} == {"three", "one"}


def test_a_finished_cell_holds_small_text_without_paths_of_the_machine(finished):
    folder, _ = finished
    cell = folder / "out/cells/disks-1-one-short-seed1"
    external = {"external-some.csv": 9, "external-whole.csv": 13}
    assert {path.name for path in cell.iterdir()} == {"config.json", "history.csv", "best.csv", "last.csv", *external}
    assert {name: len((cell / name).read_text().splitlines()) for name in external} == external
    assert len((cell / "history.csv").read_text().splitlines()) == 3
    assert str(folder) not in "".join(path.read_text() for path in cell.iterdir())
    assert (folder / "out/runs/.gitignore").read_text() == "*\n"


def test_tables_hold_what_was_scored_and_leave_the_rest_empty(finished):
    folder, _ = finished
    rows = [line.split(",") for line in (folder / "out/tables/table2-disks-short.csv").read_text().splitlines()]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert table.keys() == {"bad", "dying", "three", "one"}
    for label in ("three", "one"):
        lines = (folder / f"out/cells/disks-1-{label}-short-seed1/last.csv").read_text().splitlines()
        place = lines[0].split(",").index("iou")
        ious = [float(line.split(",")[place]) for line in lines[1:]]
        assert float(table[label]["last_iou"]) == pytest.approx(sum(ious) / 4, rel=1e-12)
        assert table[label]["external_some_images"] == "8"
    for label in ("bad", "dying"):
        assert not any(value for key, value in table[label].items() if key.startswith(("paper", "last", "clean", "external")))
    assert not any(row["clean_iou"] or row["grouped_iou"] for row in table.values())


def test_masks_of_each_network_that_was_trained_are_drawn(finished):
    from cmunext.image.files import read_image

    folder, _ = finished
    picture = read_image(folder / "out/figures/figure3-disks-short.png")
    assert (folder / "out/figures/.gitignore").read_text() == "figure3*\n"
    columns = (picture[60:160] != 255).any(axis=(0, 2))  # of the first row of pictures, between the texts
    starts = np.flatnonzero(np.diff(columns.astype(int), prepend=0) == 1)
    assert len(starts) == 4  # image, truth, three, one


def test_only_what_is_missing_is_done_again(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.setenv("CMUNEXT_CACHE", str(folder / "cache"))
    out = folder / "out"
    values = json.loads((folder / "grid.json").read_text())
    values["networks"] = {"three": values["networks"]["three"]}
    (folder / "part.json").write_text(json.dumps(values))
    before = digests(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/disks-1-three*/*")}
    (out / "cells/disks-1-three-short-seed1/last.csv").unlink()
    assert main(["benchmark", str(folder / "part.json"), "--out", str(out), "--dry-run"]) == 0
    assert "lacks last.csv" in capsys.readouterr().out
    assert main(["benchmark", str(folder / "part.json"), "--out", str(out)]) == 0
    after = digests(out)
    assert {name: after[name] for name in before if "three" in name} == {name: before[name] for name in before if "three" in name}
    unchanged = {path for path, stamp in kept.items() if path.stat().st_mtime_ns == stamp}
    assert {path.name for path in unchanged} >= {"best.csv", "external-some.csv"}


def test_a_cell_of_another_plan_is_not_put_beside_the_others(finished):
    folder, _ = finished
    values = json.loads((folder / "grid.json").read_text())
    values["recipes"]["short"]["set"]["epochs"] = 3
    (folder / "changed.json").write_text(json.dumps(values))
    grid = read_grid(folder / "changed.json")
    with pytest.raises(UsageError, match="another recipe epochs"):
        check_agreement(grid, grid.cells[-1], Store(folder / "out"))
    for option in ([], ["--dry-run"], ["--only", "tables"]):
        assert main(["benchmark", str(folder / "changed.json"), "--out", str(folder / "out"), *option]) == 2


def test_scores_that_nothing_tells_of_are_made_again(finished, tmp_path):
    folder, _ = finished
    grid = read_grid(folder / "grid.json")
    done, store = Store(folder / "out"), Store(tmp_path)
    cell = next(cell for cell in grid.cells if cell.label == "one")
    shutil.copytree(done.run(cell), store.run(cell))
    shutil.copytree(done.cell(cell), store.cell(cell))
    (store.cell(cell) / "config.json").unlink()
    (store.cell(cell) / "last.csv").write_text((store.cell(cell) / "last.csv").read_text().replace("0.", "0.1"))
    assert scores_of(store, [cell], "last") == []
    assert run_cell(grid, cell, tmp_path, threads=1)
    assert digests(store.cell(cell)) == digests(done.cell(cell))


def test_another_external_dataset_of_the_same_name_is_not_put_beside_the_first(finished):
    folder, _ = finished
    values = json.loads((folder / "grid.json").read_text())
    external = values["datasets"]["disks"]["external"]
    external["more"] = {"root": "other", "list": "val.txt"}
    (folder / "more.json").write_text(json.dumps(values))
    external["some"]["list"] = "val.txt"
    (folder / "moved.json").write_text(json.dumps(values))
    more, moved = read_grid(folder / "more.json"), read_grid(folder / "moved.json")
    check_agreement(more, more.cells[-1], Store(folder / "out"))
    with pytest.raises(UsageError, match="another external dataset some than"):
        check_agreement(moved, moved.cells[-1], Store(folder / "out"))


def test_weights_of_another_training_are_not_scored(finished, tmp_path):
    folder, _ = finished
    grid = read_grid(folder / "grid.json")
    cell = next(cell for cell in grid.cells if cell.label == "one")
    shutil.copytree(Store(folder / "out").run(cell), Store(tmp_path).run(cell))
    for change, words in (
        ({"recipe": replace(cell.recipe, epochs=9)}, "another recipe"),
        ({"network": THREE}, "another network"),
        ({"lists": replace(cell.lists, train=cell.lists.validation)}, "another train list"),
    ):
        with pytest.raises(InputError, match=words):
            run_cell(grid, replace(cell, **change), tmp_path, threads=1)


def test_a_dry_run_estimates_from_measured_steps(finished):
    folder, _ = finished
    grid = read_grid(folder / "grid.json")
    found = {plan.cell.label: plan for plan in plans(grid, Store(folder / "nothing"))}
    assert found["one"].basis == "assumed" and found["one"].seconds > 0
    assert duration(found["bad"].seconds) == "unknown"
    (folder / "measured/runs").mkdir(parents=True)
    (folder / "measured/runs/disks-1-one-short-seed1").mkdir()
    (folder / "measured/runs/disks-1-one-short-seed1/step.json").write_text('{"seconds": 2.0}')
    found = {plan.cell.label: plan for plan in plans(grid, Store(folder / "measured"))}
    # 2 epochs of 8 images in batches of 4, 2 s each; 4 images validated twice and scored twice at half a step's cost an image
    assert found["one"].seconds == pytest.approx(2 * (4 + 4 * 4 / 4 / 2), rel=1e-12)
    assert (found["one"].basis, found["three"].basis) == ("measured", "scaled")


@pytest.mark.parametrize(("loss", "seconds", "steps"), [(0.5, 1.0, 6), (None, (4 * 1.0 + 8.0) / 4, 4)])
def test_a_measured_step_is_what_the_device_took(tmp_path, monkeypatch, loss, seconds, steps):
    """Two epochs of 4 steps, 1 s between two of them, and 8 s from the last to the epoch's end, which a device at work needs."""
    now = [0.0]
    monkeypatch.setattr(cell, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = cell._Clock(tmp_path, batch_size=4, threads=1)
    for epoch in range(2):
        for batch in range(4):
            now[0] += 1.0
            clock.step(epoch, batch + 1, 4, loss)
        now[0] += 8.0
        clock.keep()
    assert json.loads((tmp_path / cell.STEP).read_text()) == {"seconds": seconds, "steps": steps, "threads": 1}


def command(grid: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "cmunext", "benchmark", str(grid), "--out", str(out), "--workers", "1"]


def progress_of(out: Path) -> int:
    """How many files there are: it grows while the grid works."""
    return sum(1 for part in ("runs", "cells") for path in (out / part).rglob("*") if path.is_file())


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_anywhere_ends_in_the_same_files(tmp_path, kills):
    grid = write_grid(tmp_path, content(three={"network": THREE}, one={"network": ONE}))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CMUNEXT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run(command(grid, tmp_path / "unbroken"), check=True, **quiet)
    total = progress_of(tmp_path / "unbroken")
    hits = 0
    for moment in sorted(random.Random(kills).sample(range(1, total), min(kills, total - 1))):
        process = subprocess.Popen(command(grid, tmp_path / "killed"), **quiet)
        while process.poll() is None and progress_of(tmp_path / "killed") < moment:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hits += 1
        process.wait()
    assert hits, "no kill came before the end"
    subprocess.run(command(grid, tmp_path / "killed"), check=True, **quiet)
    expected = digests(tmp_path / "unbroken")
    assert sum("tables" in name for name in expected) == 6
    assert digests(tmp_path / "killed") == expected
