"""Cells on Ray, one of whose workers is killed: the same files as without Ray."""

import json
from pathlib import Path

import pytest
from tests.grids import content, digests, write_grid

from cmunext.cli.main import main

pytest.importorskip("ray", reason="ray is not installed (the extra [cluster] brings it)")

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow  # starting Ray takes a while


def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TINY_DIED", str(tmp_path / "died"))
    networks = {f"n{n}": {"network": "tests.tiny_training:three_layers", "set": {"learning_rate": 0.01 * n}} for n in (1, 2)}
    grid = write_grid(
        tmp_path,
        content(dying={"network": "tests.tiny_training:DyingOnce"}, bad={"network": "tests.tiny_training:failing"}, **networks),
    )
    assert main(["benchmark", str(grid), "--out", str(tmp_path / "ray"), "--cluster", "local"]) == 1
    assert (tmp_path / "died").exists()
    assert [path.parent.name for path in (tmp_path / "ray").glob("cells/*/failed.json")] == ["disks-1-bad-short-seed1"]
    assert main(["benchmark", str(grid), "--out", str(tmp_path / "plain")]) == 1
    assert digests(tmp_path / "ray") == digests(tmp_path / "plain")
    config = json.loads((tmp_path / "ray/cells/disks-1-dying-short-seed1/config.json").read_text())
    assert config["train_cases"] == 8
