"""Writing files so that nothing is ever half-written: everything goes to a temporary name beside its target, then takes its place.
And where what can be made again is kept.
"""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmunext.errors import UsageError


def cache_folder() -> Path:
    """What can be made again lies here, and can be deleted at any time: `$CMUNEXT_CACHE`, else `cmunext` in the user's cache folder.

    Raises UsageError for a user who has no home folder, where neither variable is set.
    """
    if chosen := os.environ.get("CMUNEXT_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmunext"
    except RuntimeError as error:
        raise UsageError("this user has no home folder; set CMUNEXT_CACHE to a folder of yours") from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the folder of `path` (made when missing); on success it replaces `path`, on failure it is removed.

    The temporary name keeps the suffix of `path`, because encoders choose the format by it.

    Raises
    ------
    OSError : when the folder cannot be made or written, or the disk is full; `path` is then as it was before.
    """
    with _renamed(Path(path)) as temporary:
        # Raises what there is to raise, before a library of the caller's does it in its own words.
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries put a private file of their own there
        with temporary.open("rb") as written:
            os.fsync(written.fileno())


@contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    """A new name beside `target`, of whose file, when all went well, the target is made; else it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.stem[:40]}-{secrets.token_hex(8)}.part{target.suffix}"
    try:
        yield temporary
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a full disk does not say what it did not take
            error.filename = str(target)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder. Raises OSError."""
    for path in list(folder.glob(".*.part*")):
        path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: str | os.PathLike[str], busy: Exception | None = None) -> Iterator[None]:
    """Keep out every other process (or thread) that wants to be alone in this folder, which is made when missing.

    Where the system locks no folders (Windows, some network disks) nobody is kept out. It is the folder itself that is locked: no file
    is left behind, and with a process, however it ends, its lock is gone.

    busy : raised at once when another is alone there; None waits until it ends.

    Raises
    ------
    OSError : when the folder cannot be made or opened.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy or error from None
        except OSError:  # the system locks no folders
            pass
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal. Raises OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_bytes(path: str | os.PathLike[str], content: bytes, lasting: bool = True) -> None:
    """Write `content` to `path` in one step. Raises OSError, leaving `path` as it was.

    lasting : wait until the disk holds it. Without, it is left to the system, or to `settle`, which takes a fraction of the time for many
        files: a power cut may take it away before, the end of this process cannot.
    """
    with _renamed(Path(path)) as temporary, temporary.open("xb") as stream:
        stream.write(content)
        if lasting:
            stream.flush()
            os.fsync(stream.fileno())


def settle(folder: str | os.PathLike[str]) -> None:
    """Wait until the disk holds all that was written into the folder, where the system (Linux) can wait for many files at once.

    Raises OSError when the disk did not take something.
    """
    try:
        sync_file_system = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError, TypeError):  # another system
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        failed, number = sync_file_system(descriptor) != 0, ctypes.get_errno()
        if failed and number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):  # others: the system does not let us wait
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write `content` to `path` as UTF-8 in one step. Raises OSError, leaving `path` as it was."""
    write_bytes(path, content.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8. Raises OSError, and ValueError for what is none or is nested too deeply to be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(error) from error


def json_bytes(text: str) -> bytes:
    """JSON as UTF-8. Of the names that a disk holds and that are no text in UTF-8, the odd bytes are escaped, as JSON has it."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` to `path` as indented JSON in one step. Raises OSError, leaving `path` as it was."""
    write_bytes(path, json_bytes(json.dumps(content, indent=2, ensure_ascii=False) + "\n"))
