"""Files are written whole, and what the disk refuses is told."""

import ctypes
import errno
from pathlib import Path

import pytest

from cmunext import storage
from cmunext.errors import UsageError


class System:
    """A C library whose `syncfs` fails."""

    def __init__(self, number: int):
        self.number = number

    def syncfs(self, _descriptor: int) -> int:
        ctypes.set_errno(self.number)
        return -1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_did_not_take_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: System(number))
    with pytest.raises(OSError, match=str(tmp_path)) as raised:
        storage.settle(tmp_path)
    assert raised.value.errno == number


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    (tmp_path / "file.txt").write_bytes(b"0")
    with pytest.raises(OSError, match=r"No space left on device: .*file\.txt"):
        storage.write_bytes(tmp_path / "file.txt", b"1")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"0"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("weights.safetensors", ".hidden", "a.part"):
        (tmp_path / name).write_bytes(b"")
    with storage.replacing(tmp_path / "weights.safetensors") as temporary:
        storage.remove_partial(tmp_path)
        assert not temporary.exists()
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.part", "weights.safetensors"]


@pytest.mark.parametrize("system", [System(errno.ENOSYS), System(errno.EPERM), object()])
def test_where_the_system_does_not_wait_nothing_is_wrong(system: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: system)
    storage.settle(tmp_path)


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("CMUNEXT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UsageError, match="no home folder; set CMUNEXT_CACHE"):
        storage.cache_folder()


@pytest.mark.parametrize("lasting", [True, False])
def test_a_file_is_written_in_a_folder_that_is_made_and_replaced(lasting: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    for content in (b"first", b"second"):
        storage.write_bytes(path, content, lasting)
        storage.settle(path.parent)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
