"""engine.cpp as a library for this machine, see `compiled`."""

import ctypes
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cmunext import compiled
from cmunext.errors import InputError
from cmunext.inference.native import VERSION

SOURCES = tuple(
    Path(__file__).parent / name
    for name in ("engine.cpp", "tiles.h", "steps.h", "dense.h", "winograd.h", "threads.h", "layers.h", "map.h", "vectors.h")
)
FLAGS = (*compiled.FLAGS, "-pthread")
VARIANTS = ((), ("-mno-amx-tile",))  # the first that builds and proves itself is kept; the second goes without the matrix unit
PROOF = "cmunext.inference.native.proof"


def available() -> bool:
    """Whether the native backend can be had: the package that reads .onnx files is here, and a library or what builds one."""
    return find_spec("onnx") is not None and (is_built() or compiled.compiler() is not None)


def is_built() -> bool:
    """Whether a library for this machine lies in the cache."""
    return library_path().is_file()


def library_path() -> Path:
    """Where the library for this machine lies, or would."""
    return compiled.library_path("native", SOURCES, FLAGS)


@cache
def load_library() -> ctypes.CDLL:
    """The library, built first where it is not there or damaged, which takes seconds and is told to the logger `cmunext`.

    Raises
    ------
    UsageError, InputError : see `compiled.build`; or what lies in the cache cannot be used.
    """
    path = library_path()
    if path.is_file():
        with suppress(InputError):
            return open_library(path)
    variants = [(*FLAGS, *variant) for variant in VARIANTS]
    compiled.build(path, "the native backend", SOURCES[0], variants, PROOF, "choose --backend onnxruntime")
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
