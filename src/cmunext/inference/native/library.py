"""engine.cpp as a library for this machine, see `compiled`."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cmunext import compiled
from cmunext.inference.native import VERSION

SOURCES = (Path(__file__).parent / "engine.cpp", *sorted(Path(__file__).parent.glob("*.h")))
FLAGS = (*compiled.FLAGS, "-pthread")
VARIANTS = ((), ("-mno-amx-tile",))  # the first that builds and proves itself is kept; the second goes without the matrix unit
PROOF = "cmunext.inference.native.proof"


def available() -> bool:
    """Whether the native backend can be had: the package that reads .onnx files is here, and a library or what builds one."""
    return find_spec("onnx") is not None and (is_built() or compiled.compiler() is not None)


def is_built() -> bool:
    """Whether a library for this machine lies in the cache, undamaged."""
    return compiled.is_built(library_path())


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
    variants = [(*FLAGS, *variant) for variant in VARIANTS]
    return compiled.load_library(
        library_path(), open_library, "the native backend", SOURCES[0], variants, PROOF, "choose --backend onnxruntime"
    )


def open_library(path: Path) -> ctypes.CDLL:
    """The functions of a library that was built. Raises InputError when it is none, or one of another version."""
    library = compiled.open_library(path, "cmunext_version", VERSION)
    library.cmunext_open.restype = ctypes.c_void_p
    library.cmunext_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.cmunext_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    library.cmunext_close.restype = None
    library.cmunext_close.argtypes = [ctypes.c_void_p]
    return library
