"""What every test can ask for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


@pytest.fixture
def full_disk() -> Callable[..., AbstractContextManager[None]]:
    """While it is entered, the system writes no more than so many bytes to any file: an OSError at the place of "No space left"."""
    resource = pytest.importorskip("resource", reason="this system has no limits of file size")

    @contextmanager
    def limited(size: int = 1000) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
