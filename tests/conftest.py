"""What every test can ask for."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens and real images beside the repository; tests that need it are skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared (goldens and real images) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def fixtures(shared: Path) -> Path:
    """The folder of golden numbers."""
    return shared / "fixtures"
