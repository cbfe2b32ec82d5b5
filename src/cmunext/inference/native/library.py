"""engine.cpp as a library for this machine: built once by the machine's own compiler, kept in the cache folder.

It is built for the very processor (`-march=native`), which is where its speed comes from, so that each kind of machine that shares a cache
folder has its own.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cmunext.errors import InputError, UsageError
from cmunext.inference.native import VERSION
from cmunext.inference.processor import processor
from cmunext.storage import cache_folder, replacing

SOURCES = tuple(
    Path(__file__).parent / name
    for name in ("engine.cpp", "tiles.h", "steps.h", "dense.h", "winograd.h", "threads.h", "layers.h", "map.h", "vectors.h")
)
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC", "-w")
VARIANTS = ((), ("-mno-amx-tile",))  # the first that builds and proves itself is kept; the second goes without the matrix unit
SECONDS = 300  # that a build, or a proof, may take


def available() -> bool:
    """Whether the native backend can be had: the package that reads .onnx files is here, and a library or what builds one."""
    return find_spec("onnx") is not None and (is_built() or compiler() is not None)


def is_built() -> bool:
    """Whether a library for this machine lies in the cache."""
    return library_path().is_file()


def library_path() -> Path:
    """Where the library for this machine lies, or would: its name changes with the sources and the processor."""
    return (cache_folder() / f"native-{_digest(SOURCES, FLAGS)}.so").absolute()


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


@cache
def load_library() -> ctypes.CDLL:
    """The library, built first where it is not there or damaged, which takes seconds and is told to the logger `cmunext`.

    Raises
    ------
    UsageError : when there is no compiler.
    InputError : when it cannot be built, or what lies in the cache cannot be used.
    """
    path = library_path()
    if path.is_file():
        with suppress(InputError):
            return open_library(path)
    _build(path)
    return open_library(path)


def open_library(path: Path) -> ctypes.CDLL:
    """The functions of a library that was built. Raises InputError when it is none, or one of another version."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.cmunext_version()
    except (OSError, AttributeError) as error:
        raise InputError(f"{path}: this library cannot be loaded ({error}); delete it, and it is built again") from error
    if version != VERSION:
        raise InputError(
            f"{path}: this library has version {version} where {VERSION} is needed; delete it, and it is built again"
        )
    library.cmunext_open.restype = ctypes.c_void_p
    library.cmunext_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.cmunext_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    library.cmunext_close.restype = None
    library.cmunext_close.argtypes = [ctypes.c_void_p]
    return library


def _build(path: Path) -> None:
    """Write the first variant that builds and that `proof` finds right; nothing else is ever under this name."""
    command = compiler()
    if command is None:
        named = f"CXX is {os.environ['CXX']!r}, which is not found; " if os.environ.get("CXX", "").strip() else ""
        raise UsageError(
            f"{named}the native backend is built on this machine and needs a C++ compiler; install g++ 12 or newer, or choose another backend"
        )
    logging.getLogger("cmunext").warning(  # which writes to stderr, where nobody has set up anything else
        "compiling the native backend with %s, once on this machine, which takes some seconds; it is kept as %s", command[0], path
    )
    try:
        with replacing(path) as temporary:
            for variant in VARIANTS:
                done = _run([*command, *FLAGS, *variant, str(SOURCES[0]), "-o", str(temporary)], path.parent)
                if done.returncode == 0:
                    done = _run([sys.executable, "-m", "cmunext.inference.native.proof", str(temporary)], path.parent)
                if done.returncode == 0:
                    return
            problem = _reason(done.stderr) or f"it ended with {done.returncode}"
            raise InputError(
                f"{command[0]} builds no native backend that works here ({problem}); choose --backend onnxruntime, or another compiler by CXX"
            )
    except OSError as error:
        raise InputError(
            f"{path}: the native backend cannot be written ({error.strerror}); set CMUNEXT_CACHE to a folder of yours"
        ) from error


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that holds no modules, where it finds the same packages as this process."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=folder, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"{command[0]} cannot be run to build the native backend ({error}); choose --backend onnxruntime"
        ) from error


def _reason(output: str) -> str:
    """The first error of a compiler, or the last line of whatever else failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "")[:200]
