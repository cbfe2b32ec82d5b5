"""The package's C++ as libraries for this machine: built once by the machine's own compiler, kept in the cache folder.

They are built for the very processor (`-march=native`), which is where their speed comes from, so that each kind of machine that shares a
cache folder has its own.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from cmunext.errors import InputError, UsageError
from cmunext.processor import processor
from cmunext.storage import cache_folder, file_sha256, replacing, write_text

COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
SECONDS = 300  # that a build, or a proof, may take


def library_path(name: str, sources: tuple[Path, ...], flags: tuple[str, ...]) -> Path:
    """Where the library for this machine lies, or would: its name changes with the sources, the flags and the processor."""
    return (cache_folder() / f"{name}-{_digest(sources, flags)}.so").absolute()


@cache
def _digest(sources: tuple[Path, ...], flags: tuple[str, ...]) -> str:
    content = b"".join(source.read_bytes() for source in sources)
    return hashlib.sha256(content + repr((processor(), flags)).encode()).hexdigest()[:16]


def compiler() -> list[str] | None:
    """The command of the C++ compiler: `$CXX` where it is not blank, else the first of `COMPILERS` on the path; None where there is none."""
    if chosen := os.environ.get("CXX", "").strip():
        try:
            command = [chosen] if shutil.which(chosen) else shlex.split(chosen)
        except ValueError:  # a quotation without its end
            return None
        return command if shutil.which(command[0]) else None
    return next(([found] for name in COMPILERS if (found := shutil.which(name))), None)


def is_built(path: Path) -> bool:
    """Whether a library lies there as it was built: one that a disk has damaged would give wrong numbers, or end the process."""
    try:
        return _checksum(path).read_text("ascii") == file_sha256(path)
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def load_library(
    path: Path,
    opened: Callable[[Path], ctypes.CDLL],
    what: str,
    source: Path,
    variants: Iterable[tuple[str, ...]],
    proof: str,
    instead: str,
) -> ctypes.CDLL:
    """What `opened` gives for a library, built first where it is not there or damaged; the others, and what is raised, as in `build`."""
    if is_built(path):
        with suppress(InputError):
            return opened(path)
    build(path, what, source, variants, proof, instead)
    return opened(path)


def open_library(path: Path, version_function: str, version: int) -> ctypes.CDLL:
    """A library that was built. Raises InputError when it is none, or `version_function` in it gives another version."""
    try:
        library = ctypes.CDLL(str(path))
        found = library[version_function]()
    except (OSError, AttributeError) as error:
        raise InputError(f"{path}: this library cannot be loaded ({error}); delete it, and it is built again") from error
    if found != version:
        raise InputError(f"{path}: this library has version {found} where {version} is needed; delete it, and it is built again")
    return library


def build(path: Path, what: str, source: Path, variants: Iterable[tuple[str, ...]], proof: str, instead: str) -> None:
    """Write the first variant that builds and that `proof` finds right; nothing else is ever under this name. It takes seconds and is told
    to the logger `cmunext`.

    Parameters
    ----------
    path : see `library_path`. what : is built, as in "the native backend". source : what the compiler is given, which includes the rest.
    variants : sets of flags, the best first. proof : a module that is run with a library's path and ends with 0 when all is right.
    instead : what there is to do without it, as in "choose --backend onnxruntime".

    Raises
    ------
    UsageError : when there is no compiler.
    InputError : when no variant builds or proves right, or it cannot be written.
    """
    command = compiler()
    if command is None:
        named = f"CXX is {os.environ['CXX']!r}, which is not found; " if os.environ.get("CXX", "").strip() else ""
        raise UsageError(
            f"{named}{what} is built on this machine and needs a C++ compiler; install g++ 12 or newer, or {instead}"
        )
    logging.getLogger("cmunext").warning(  # which writes to stderr, where nobody has set up anything else
        "compiling %s with %s, once on this machine, which takes some seconds; it is kept as %s", what, command[0], path
    )
    try:
        with replacing(path) as temporary:
            for flags in variants:
                done = _run([*command, *flags, str(source), "-o", str(temporary)], path.parent, what, instead)
                if done.returncode == 0:
                    done = _run([sys.executable, "-m", proof, str(temporary)], path.parent, what, instead)
                if done.returncode == 0:
                    write_text(_checksum(path), file_sha256(temporary))
                    return
            problem = _reason(done.stderr) or f"it ended with {done.returncode}"
            raise InputError(
                f"{command[0]} cannot build {what} for this machine ({problem}); {instead}, or another compiler by CXX"
            )
    except OSError as error:
        raise InputError(
            f"{path}: {what} cannot be written ({error.strerror}); set CMUNEXT_CACHE to a folder of yours"
        ) from error


def _run(command: list[str], folder: Path, what: str, instead: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that holds no modules, where it finds the same packages as this process."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=folder, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{command[0]} cannot be run to build {what} ({error}); {instead}") from error


def _reason(output: str) -> str:
    """The first error of a compiler, or the last line of whatever else failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "")[:200]
