"""tools/zoo.py: a dataset as one file and back, and a grid in parts whose results are brought back in a tar."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tools import zoo

from cmunext.benchmark.grid_file import read_grid
from cmunext.benchmark.store import Store
from cmunext.data.dataset import load_cases
from cmunext.data.layout import Layout
from cmunext.image.preprocess import Preprocessing
from cmunext.storage import write_bytes, write_text
from cmunext.weights import load
from tests.datasets import write_dataset
from tests.grids import ONE, THREE, content


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CMUNEXT_NETWORKS", f"{ONE},{THREE}")
    monkeypatch.setenv("PYTHONPATH", str(zoo.ROOT))


def test_a_packed_dataset_gives_the_same_cases(tmp_path):
    write_dataset(tmp_path / "data", classes=2, side=300)
    with_returns = (tmp_path / "data/val.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "data/val.txt").write_bytes(with_returns)
    zoo.pack(tmp_path / "data", tmp_path / "data.npz")
    zoo.unpack(tmp_path / "data.npz", tmp_path / "back")
    before, after = (Layout.open(tmp_path / folder) for folder in ("data", "back"))
    assert after.read_list(Path("val.txt")) == before.read_list(Path("val.txt"))
    assert (tmp_path / "back/val.txt").read_bytes() == with_returns, "cells know a list by its SHA-256"
    ours, theirs = (load_cases(layout, layout.cases, Preprocessing()) for layout in (after, before))
    assert ours.names == theirs.names
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.masks, theirs.masks)
    assert ours.image_digests == theirs.image_digests, (
        "weights that learn from the copies name the images that they were made from"
    )


def test_parts_end_in_a_complete_grid_wherever_they_run(tmp_path):
    """The second part begins where only the tar of the first was unpacked: no runs, no checkpoints."""
    values = content(one={"network": ONE}, three={"network": THREE}) | {"device": "cuda"}
    values["recipes"]["taught"] = {
        **values["recipes"]["short"],
        "networks": ["one"],
        "teachers": {"recipe": "short", "network": "three"},
    }
    values["recipes"]["mean"] = {"networks": ["one"], "mean": ["short", "taught"]}
    values["datasets"]["disks"]["root"] = "../../data"
    for machine in ("first", "second"):
        write_dataset(tmp_path / machine / "data")
        (tmp_path / machine / "results/zoo").mkdir(parents=True)
        (tmp_path / machine / "results/zoo/grid.json").write_text(json.dumps(values))
    first, second = (tmp_path / machine / "results/zoo" for machine in ("first", "second"))
    assert zoo.run(tmp_path / "0.tar", first / "grid.json", minutes=0.0, workers=1, device="cpu") == 130
    for later in ("taught", "mean"):  # so the first part ends before the pupil
        values["recipes"].pop(later)
    (first / "grid.json").write_text(json.dumps(values))
    assert zoo.run(tmp_path / "1.tar", first / "grid.json", minutes=9, workers=1, device="cpu") == 0
    assert [path.name for path in first.iterdir() if path.name.endswith(".json")] == ["grid.json"]
    with tarfile.open(tmp_path / "1.tar") as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.10.12 and 3.11.4
        tar.extractall(tmp_path / "second", **safely)
    halved_file = "runs/disks-1-three-short-seed1/ema.safetensors"
    whole, halved = (load(folder / halved_file).network.state_dict() for folder in (first, second))
    assert (second / halved_file).stat().st_size < (first / halved_file).stat().st_size
    for name, tensor in whole.items():
        np.testing.assert_allclose(halved[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-6)
    shutil.rmtree(second / "tables")
    assert zoo.run(tmp_path / "2.tar", second / "grid.json", minutes=9, workers=1, device="cpu") == 0
    entries = json.loads((second.parent / "zoo.json").read_text())
    assert [(entry["network"], entry["recipe"], entry["list"], entry["seed"]) for entry in entries] == [
        (ONE, "short", "1", 1), (THREE, "short", "1", 1), (ONE, "taught", "1", 1), (ONE, "mean", "1", 1)
    ]  # fmt: skip
    assert entries[-1]["mean_of"] == ["short", "taught"]
    assert "epochs" not in entries[-1]
    for entry in entries:
        for column in ("paper", "last"):
            low, high = entry[column]["iou_interval"]
            assert 0 <= low <= entry[column]["iou"] <= high <= 1
            assert 0 <= entry[column]["iou"] <= entry[column]["dice"] <= 1
        assert "clean" not in entry, "the grid names no clean list"


def test_teachers_and_runs_that_are_begun_are_brought_back_as_they_are(tmp_path):
    """A pupil that is begun knows its teachers by their SHA-256, and goes on from its checkpoint."""
    values = content(one={"network": ONE}, three={"network": THREE})
    values["recipes"]["taught"] = {
        **values["recipes"]["short"],
        "networks": ["one"],
        "teachers": {"recipe": "short", "network": "three"},
    }
    path = tmp_path / "results/zoo/grid.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(values))
    store, (other, teacher, pupil) = Store(path.parent), read_grid(path).cells
    for cell in (other, teacher):
        for file in store.missing(cell):
            write_text(file, "")
        write_bytes(store.last_weights(cell), save({"weight": torch.full((50, 50), 0.1)}))
    write_text(store.run(pupil) / "recipe.json", "{}")
    write_text(store.run(pupil) / "last.ckpt", "state")
    zoo.collect(tmp_path / "part.tar", path)

    def names_and_contents(tar_file: str) -> dict[str, bytes]:
        with tarfile.open(tmp_path / tar_file) as tar:
            files = [member for member in tar.getmembers() if member.isfile()]
            return {str(tmp_path / member.name): tar.extractfile(member).read() for member in files}

    part, running = names_and_contents("part.tar"), names_and_contents("part-running.tar")
    assert part[str(store.last_weights(teacher))] == store.last_weights(teacher).read_bytes()
    assert len(part[str(store.last_weights(other))]) < len(store.last_weights(other).read_bytes())
    assert running == {str(store.run(pupil) / name): found for name, found in (("recipe.json", b"{}"), ("last.ckpt", b"state"))}
    write_text(store.cell(pupil) / "config.json", "")
    for file in store.missing(pupil):
        write_text(file, "")
    zoo.collect(tmp_path / "part.tar", path)
    assert not (tmp_path / "part-running.tar").exists(), "nothing is under way any more"


def test_what_was_trained_is_brought_back_where_no_table_can_be_made(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data")
    values = content(one={"network": ONE})
    values["datasets"]["disks"]["root"] = "../../data"
    scores = tmp_path / "results/zoo/cells/disks-1-one-short-seed1/last.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text("case,iou\n")
    (tmp_path / "results/zoo/grid.json").write_text(json.dumps(values))

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        if check:
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        zoo.run(tmp_path / "0.tar", tmp_path / "results/zoo/grid.json", minutes=9, workers=1, device="cpu")
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert tar.getnames() == [str(scores.relative_to(tmp_path))]
