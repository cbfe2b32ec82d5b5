"""Grids of tiny trainings, for tests of what runs them."""

import hashlib
import json
from pathlib import Path

from tests.datasets import write_dataset

THREE, ONE = "tests.tiny_training:three_layers", "tests.tiny_training:one_layer"


def content(**networks: dict) -> dict:
    """A grid of one list and the networks given, two epochs each."""
    return {
        "name": "tiny",
        "datasets": {"disks": {"root": "data", "lists": {"1": {"train": "train.txt", "val": "val.txt"}}}},
        "recipes": {"short": {"set": {"epochs": 2, "size": 32, "batch_size": 4, "learning_rate": 0.05}}},
        "networks": networks,
        "seeds": [1],
        "threads": 1,
        "device": "cpu",
    }


def write_grid(folder: Path, values: dict) -> Path:
    folder.mkdir(exist_ok=True)
    if not (folder / "data").exists():
        write_dataset(folder / "data")
    path = folder / "grid.json"
    path.write_text(json.dumps(values))
    return path


def digests(out: Path) -> dict[str, str]:
    """Every file that counts as a result, hidden ones too."""
    files = [path for part in ("cells", "tables", "figures") for path in (out / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
