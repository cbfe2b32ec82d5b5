"""What several tests of training share: a small dataset, and networks of tests.tiny_training trusted."""

from pathlib import Path

import pytest
from tests.datasets import write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve disks, eight of them to train on."""
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Weights may name the NETWORK of the test's module."""
    monkeypatch.setenv("CMUNEXT_NETWORKS", request.module.NETWORK)
