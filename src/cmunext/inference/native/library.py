"""engine.cpp as a library for this machine: built once by the machine's own compiler, kept in the cache folder.

It is built for the very processor (`-march=native`), which is where its speed comes from, so that each kind of machine that shares a cache
folder has its own.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cmunext.errors import InputError, UsageError
from cmunext.inference.native import VERSION
from cmunext.inference.processor import processor
from cmunext.storage import cache_folder, replacing

SOURCES = tuple(
    Path(__file__).parent / name for name in ("engine.cpp", "tiles.h", "steps.h", "threads.h", "layers.h", "map.h", "vectors.h")
)
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC", "-w")
VARIANTS = (
    ("-fopenmp",),
    ("-fopenmp", "-mno-amx-tile"),
    (),
)  # the first that builds and proves itself: without the matrix unit, without threads
SECONDS = 300  # that a build, or a proof, may take


def available() -> bool:
    """Whether the native backend can be had: the package that reads .onnx files is here, and a library or what builds one."""
    return find_spec("onnx") is not None and (is_built() or compiler() is not None)


def is_built() -> bool:
    """Whether a library for this machine lies in the cache."""
    return library_path().is_file()


def library_path() -> Path:
    """Where the library for this machine lies, or would: its name changes with the sources and the processor."""
    content = b"".join(source.read_bytes() for source in SOURCES)
    digest = hashlib.sha256(content + repr((processor(), FLAGS)).encode()).hexdigest()[:16]
    return cache_folder() / f"native-{digest}.so"


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, or the first of `COMPILERS` on the path."""
    for name in (os.environ.get("CXX"), *COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    return None


@cache
def load_library() -> ctypes.CDLL:
    """The library, built first where it is not there, which takes seconds.

    Raises
    ------
    UsageError : when there is no compiler.
    InputError : when it cannot be built, or what lies in the cache cannot be used.
    """
    path = library_path()
    if not path.is_file():
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
    found = compiler()
    if found is None:
        raise UsageError(
            "the native backend is built on this machine and needs a C++ compiler; install g++, or choose another backend"
        )
    try:
        with replacing(path) as temporary:
            for variant in VARIANTS:
                done = _run([found, *FLAGS, *variant, str(SOURCES[0]), "-o", str(temporary)])
                if done.returncode == 0:
                    done = _run([sys.executable, "-m", "cmunext.inference.native.proof", str(temporary)])
                if done.returncode == 0:
                    return
            problem = _first_error(done.stderr) or f"it ended with {done.returncode}"
            raise InputError(f"{found} cannot build a native backend that works here ({problem}); choose --backend onnxruntime")
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{found} needs more than {SECONDS} s for the native backend; choose --backend onnxruntime") from error
    except OSError as error:
        raise InputError(
            f"{path}: the native backend cannot be written ({error.strerror}); set CMUNEXT_CACHE to a folder of yours"
        ) from error


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "")[:200]
