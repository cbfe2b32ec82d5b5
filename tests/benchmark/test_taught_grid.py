"""Grids whose cells learn from the weights of others, go on from them or from a file, or are their mean; and a limit of time."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
import typer
from tests.datasets import write_dataset
from tests.grids import ONE, THREE, content, digests, write_grid

from cmunext.benchmark import cell as cell_module
from cmunext.benchmark.agreement import check_agreement
from cmunext.benchmark.cell import run_cell
from cmunext.benchmark.estimate import plans
from cmunext.benchmark.grid_file import read_grid
from cmunext.benchmark.results import scores_of
from cmunext.benchmark.store import CONFIG, Store
from cmunext.benchmark.tables import preface
from cmunext.cli.benchmark import _time_limit
from cmunext.cli.main import main
from cmunext.errors import InputError, UsageError
from cmunext.image.files import read_mask, write_mask
from cmunext.weights import load

TAUGHT = {"networks": ["one"], "teachers": {"recipe": "short", "network": "three"}}


def taught_content(**recipe) -> dict:
    values = content(one={"network": ONE}, three={"network": THREE})
    values["recipes"]["taught"] = {**values["recipes"]["short"], **recipe}
    values["seeds"] = [1, 2]
    return values


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))


def test_a_pupil_is_trained_after_every_seed_of_its_teachers(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_NETWORKS", f"{ONE},{THREE}")
    path = write_grid(tmp_path, taught_content(**TAUGHT))
    grid, store = read_grid(path), Store(tmp_path)
    pupils = [cell for cell in grid.cells if cell.teachers]
    names = ["disks-1-three-short-seed1", "disks-1-three-short-seed2"]
    assert [cell.identifier for cell in pupils] == ["disks-1-one-taught-seed1", "disks-1-one-taught-seed2"]
    assert [teacher.identifier for teacher in pupils[0].teachers] == names
    assert [cell.generation for cell in grid.cells] == [0, 0, 0, 0, 1, 1]
    assert main(["benchmark", str(path)]) == 0
    assert all(not store.missing(cell) for cell in grid.cells)
    told = load(store.last_weights(pupils[0])).metadata.training["distillation"]["teachers"]
    assert len(told) == 2
    assert json.loads((store.cell(pupils[0]) / CONFIG).read_text())["teachers"] == names
    shutil.rmtree(store.cell(pupils[0]))
    teacher = store.last_weights(pupils[0].teachers[1])
    kept = teacher.read_bytes()
    teacher.unlink()
    assert run_cell(grid, pupils[0], tmp_path, threads=1), "a teacher that is not there any more says nothing against the run"
    shutil.rmtree(store.cell(pupils[0]))
    teacher.write_bytes(kept + b" ")
    with pytest.raises(InputError, match="another set of teachers"):
        run_cell(grid, pupils[0], tmp_path, threads=1)
    untaught = read_grid(write_grid(tmp_path, taught_content(networks=["one"])))
    with pytest.raises(InputError, match="another set of teachers"):
        run_cell(untaught, untaught.cells[-2], tmp_path, threads=1)
    with pytest.raises(UsageError, match="another teachers"):
        check_agreement(untaught, untaught.cells[-1], store)


def test_a_cell_starts_from_the_weights_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_NETWORKS", f"{ONE},{THREE}")
    first = tmp_path / "first"
    assert main(["benchmark", str(write_grid(first, content(one={"network": ONE})))]) == 0
    [cell] = read_grid(first / "grid.json").cells
    begun = Store(first).last_weights(cell)
    begun.rename(tmp_path / "begun.safetensors")
    path = write_grid(tmp_path, taught_content(networks=["one"], start="begun.safetensors"))
    assert main(["benchmark", str(path)]) == 0
    tuned = [one for one in read_grid(path).cells if one.start]
    assert len(tuned) == 2
    training = load(Store(tmp_path).last_weights(tuned[0])).metadata.training
    assert training["start"]["file"] == "begun.safetensors"
    (tmp_path / "begun.safetensors").write_bytes(b"another")
    fresh = read_grid(write_grid(tmp_path, taught_content(networks=["one"])))
    with pytest.raises(UsageError, match="another start_sha256"):
        check_agreement(fresh, fresh.cells[-1], Store(tmp_path))
    write_grid(tmp_path, taught_content(networks=["one"], start="begun.safetensors"))
    assert main(["benchmark", str(path)]) == 2, "a finished cell that started from another file is not taken for this one"
    shutil.rmtree(Store(tmp_path).cell(tuned[0]))
    with pytest.raises(InputError, match="holds a training with another start"):
        run_cell(read_grid(path), tuned[0], tmp_path, threads=1)


def test_a_cell_goes_on_from_another_recipe_of_the_same_network_lists_and_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CMUNEXT_NETWORKS", f"{ONE},{THREE}")
    values = taught_content(networks=["one"], start={"recipe": "short"})
    del values["networks"]["three"]
    path = write_grid(tmp_path, values)
    grid, store = read_grid(path), Store(tmp_path)
    again = [cell for cell in grid.cells if cell.start]
    names = ["disks-1-one-short-seed1", "disks-1-one-short-seed2"]
    assert [(cell.start.identifier, cell.generation) for cell in again] == [(name, 1) for name in names]
    assert main(["benchmark", str(path)]) == 0
    start = load(store.last_weights(again[1])).metadata.training["start"]
    assert start["file"] == store.last_weights(again[1].start).name
    assert json.loads((store.cell(again[1]) / CONFIG).read_text())["start"] == names[1]
    fresh = read_grid(write_grid(tmp_path, taught_content(networks=["one"])))
    with pytest.raises(UsageError, match="another start than"):
        check_agreement(fresh, fresh.cells[-1], store)
    write_grid(tmp_path, taught_content(networks=["one"], start={"recipe": "short"}))

    for folder in (store.cell(again[0]), store.run(again[0]), store.run(again[0].start)):
        shutil.rmtree(folder)
    capsys.readouterr()
    assert main(["benchmark", str(path)]) == 1
    assert f"{names[0]}, which is needed first, has no weights" in capsys.readouterr().err


def mean_content() -> dict:
    values = taught_content(start={"recipe": "short"})
    del values["networks"]["one"]
    values["recipes"]["mean"] = {"mean": ["short", "taught"]}
    return values


def test_a_mean_is_of_one_seed_and_may_be_gone_on_from(tmp_path):
    values = mean_content()
    values["recipes"]["on"] = {**values["recipes"]["short"], "start": {"recipe": "mean"}}
    cells = read_grid(write_grid(tmp_path, values)).cells
    means = [cell for cell in cells if cell.mean]
    assert [(cell.identifier, cell.generation) for cell in means] == [(f"disks-1-three-mean-seed{seed}", 2) for seed in (1, 2)]
    assert [part.identifier for part in means[1].mean] == ["disks-1-three-short-seed2", "disks-1-three-taught-seed2"]
    assert [(cell.start, cell.generation) for cell in cells if cell.recipe.name == "on"] == [(mean, 3) for mean in means]


def test_the_settings_of_a_network_are_for_its_trainings_and_not_for_a_mean_of_them(tmp_path):
    values = mean_content()
    for recipe in ("short", "taught"):
        values["recipes"][recipe]["set"] |= {"augmentation.rotate90": 0.0}
    values["networks"]["three"]["set"] = {"preprocessing.height": 48}  # which no recipe with quarter turns takes
    mean = read_grid(write_grid(tmp_path, values)).cells[-1]
    assert (mean.recipe.preprocessing.height, mean.recipe.preprocessing.width) == (48, 32)


def test_a_mean_of_recipes_is_scored_like_a_training(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_NETWORKS", THREE)
    values = mean_content() | {"seeds": [1]}
    grid, store = read_grid(write_grid(tmp_path, values)), Store(tmp_path)
    *parts, mean = grid.cells
    before = {plan.cell.identifier: plan.seconds for plan in plans(grid, store)}
    assert before[mean.identifier] < before[parts[0].identifier] / 2, "it is scored, and not trained"
    assert all(run_cell(grid, cell, tmp_path, threads=1) for cell in grid.cells)
    assert {file.name for file in store.cell(mean).iterdir()} == {"config.json", "last.csv"}
    assert [len(scores_of(store, [mean], column)) for column in ("paper", "last")] == [1, 1]
    first, second, averaged = (
        load(store.last_weights(cell)).network.state_dict()["0.weight"].double() for cell in (*parts, mean)
    )
    torch.testing.assert_close(averaged, (first + second) / 2, rtol=1e-7, atol=1e-9)
    assert "the mean of the weights of short, taught, lists 1" in preface(grid, mean.dataset, "mean")[0]

    values["recipes"]["mean"]["mean"] = ["taught", "short"]
    other = read_grid(write_grid(tmp_path, values))
    with pytest.raises(UsageError, match=r"another mean "):
        check_agreement(other, other.cells[-1], store)


def test_a_start_may_be_weights_by_name(tmp_path, monkeypatch):
    (tmp_path / "zoo").mkdir()
    named = tmp_path / "zoo" / "mine.safetensors"
    named.touch()
    monkeypatch.setenv("CMUNEXT_ZOO", str(tmp_path / "zoo"))
    grid = read_grid(write_grid(tmp_path, taught_content(networks=["one"], start="mine")))
    assert {cell.start for cell in grid.cells} == {None, named}


def test_several_recipes_may_teach_together(tmp_path):
    teachers = [{"recipe": "short", "network": network} for network in ("three", "one")]
    *others, pupil = read_grid(write_grid(tmp_path, taught_content(networks=["one"], teachers=teachers))).cells
    assert pupil.teachers == (*others[2:4], *others[:2])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"networks": ["nobody"]}, "names the network 'nobody'"),
        ({"networks": "one"}, "give a list of the grid's networks"),
        ({"teachers": {"recipe": "short"}}, "give a recipe and a network"),
        ({"teachers": [{"recipe": "short", "network": "three"}, "short"]}, "has 'short'; give a recipe and a network"),
        ({"teachers": []}, "at least one"),
        ({"teachers": [{"recipe": "short", "network": "three"}] * 2}, "each once"),
        ({"teachers": {"recipe": "short", "network": "nobody"}}, "names the network 'nobody'"),
        ({"teachers": {"recipe": "later", "network": "one"}}, "put that recipe first"),
        ({"start": {"recipe": "later"}}, "put that recipe first"),
        ({"start": {}}, "give a file, or a recipe of the grid"),
        ({"mean": ["short", "short"]}, "two or more recipes of the grid, each once"),
        ({"mean": "short"}, "two or more recipes of the grid, each once"),
        ({"mean": ["short", "later"]}, "put that recipe first"),
        ({"mean": ["short", "other"], "set": {}}, "a mean of others, .* unknown entry 'set'"),
    ],
)
def test_teachers_and_starts_that_the_grid_does_not_train_are_refused(tmp_path, recipe, words):
    values = taught_content(**recipe)
    if "mean" in recipe:
        values["recipes"]["taught"] = recipe  # and no settings
    with pytest.raises(UsageError, match=words):
        read_grid(write_grid(tmp_path, values))


def test_a_grid_stops_when_its_time_is_over_and_goes_on_later(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CMUNEXT_NETWORKS", f"{ONE},{THREE}")
    path = write_grid(tmp_path / "stopped", taught_content(**TAUGHT))
    assert main(["benchmark", str(path), "--minutes", "0.001"]) == 130
    assert "the 0.001 minutes are over" in capsys.readouterr().err
    assert any(Store(tmp_path / "stopped").missing(cell) for cell in read_grid(path).cells)
    assert main(["benchmark", str(path)]) == 0
    whole = write_grid(tmp_path / "whole", taught_content(**TAUGHT))
    assert main(["benchmark", str(whole), "--minutes", "60"]) == 0
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_a_grid_that_is_terminated_finishes_its_step_and_saves(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CMUNEXT_NETWORKS", THREE)
    values = content(three={"network": THREE})
    values["recipes"]["short"]["set"]["epochs"] = 2000
    path = write_grid(tmp_path, values)
    run, ended = Store(tmp_path).run(read_grid(path).cells[0]), threading.Event()

    def terminate() -> None:
        while not (run / "history.csv").exists() and not ended.wait(0.01):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=terminate)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a grid that does not listen: the test fails, and not the tests
    waiting.start()
    try:
        assert main(["benchmark", str(path)]) == 130
    finally:
        ended.set()
        waiting.join()
        signal.signal(signal.SIGTERM, before)
    assert "error: interrupted" in capsys.readouterr().err
    assert "stopping after this step" in (run / "log.txt").read_text(), "and so with a checkpoint"
    assert (run / "last.ckpt").exists()


def test_the_time_limit_wakes_a_process_that_waits_and_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        with pytest.raises(typer.Exit) as stopped, _time_limit(0.001):
            assert threading.Event().wait(60), "nothing woke it"
        assert stopped.value.exit_code == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_external_set_that_the_start_has_learnt_from_is_not_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_NETWORKS", ONE)
    write_dataset(tmp_path / "elsewhere", seed=5)
    values = content(one={"network": ONE})
    values["datasets"]["disks"]["root"] = "../elsewhere"
    first = read_grid(write_grid(tmp_path / "first", values))
    assert run_cell(first, first.cells[0], tmp_path / "first", threads=1)
    begun = Store(tmp_path / "first").last_weights(first.cells[0])
    values = taught_content(networks=["one"], start=str(begun.relative_to(tmp_path)))
    values["networks"], values["seeds"] = {"one": {"network": ONE}}, [1]
    values["datasets"]["disks"]["external"] = {"elsewhere": {"root": "elsewhere"}}
    grid, store = read_grid(write_grid(tmp_path, values)), Store(tmp_path)
    fresh, tuned = grid.cells
    assert run_cell(grid, fresh, tmp_path, threads=1), "what did not learn from it is scored on it"
    with pytest.raises(InputError, match="learnt from 8 of the 12 images of"):
        run_cell(grid, tuned, tmp_path, threads=1)
    assert [file.name for file in store.missing(tuned)] == ["external-elsewhere.csv", "history.csv", "config.json"]


def test_a_cell_of_several_classes_goes_on_after_a_stop(tmp_path, monkeypatch):
    """With boundary-dou its recipe is completed by a softmax when training begins, which makes it no other plan."""
    monkeypatch.setenv("CMUNEXT_NETWORKS", ONE)
    write_dataset(tmp_path / "data", classes=2)
    for path in (tmp_path / "data/masks/1").iterdir():
        lesion = read_mask(path)
        write_mask(tmp_path / "data/masks/0" / path.name, ~lesion)
    (tmp_path / "data/classes.txt").write_text("background\nlesion\n")
    values = content(one={"network": ONE})
    values["recipes"]["short"]["set"]["loss"] = "boundary-dou"
    grid = read_grid(write_grid(tmp_path, values))
    (cell,), store = grid.cells, Store(tmp_path)
    with monkeypatch.context() as stopped:
        stopped.setattr(cell_module, "_score", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
        with pytest.raises(InputError, match="stopped"):
            run_cell(grid, cell, tmp_path, threads=1)
    assert run_cell(grid, cell, tmp_path, threads=1)
    assert not store.missing(cell)
    assert "iou" in (store.cell(cell) / "last.csv").read_text().splitlines()[0].split(","), "of one measured class"


def test_a_cell_of_other_class_names_is_not_put_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("CMUNEXT_NETWORKS", ONE)
    write_dataset(tmp_path / "data", classes=2)
    grid = read_grid(write_grid(tmp_path, content(one={"network": ONE})))
    assert run_cell(grid, grid.cells[0], tmp_path, threads=1)
    check_agreement(grid, grid.cells[0], Store(tmp_path))
    (tmp_path / "data/classes.txt").write_text("background\nlesion\n")
    with pytest.raises(UsageError, match="made with another classes"):
        check_agreement(grid, grid.cells[0], Store(tmp_path))
