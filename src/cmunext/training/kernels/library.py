"""kernels.cpp as a library for this machine, see `compiled`; a training goes on without it where it cannot be had."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cmunext import compiled
from cmunext.errors import InputError, UsageError
from cmunext.training.kernels import VERSION
from cmunext.training.kernels.interface import declare

SOURCES = (Path(__file__).parent / "kernels.cpp", *sorted(Path(__file__).parent.glob("*.h")))
# With g++ the threads are PyTorch's: the library of that name that it brought is the one in use.
FLAGS = (*compiled.FLAGS, "-fopenmp")
PROOF = "cmunext.training.kernels.proof"


def load(say: Callable[[str], None]) -> ctypes.CDLL | None:
    """The library, built first where it is not there; None where it cannot be had, which is told to `say`."""
    if not sys.platform.startswith("linux"):  # elsewhere PyTorch's threads are not found this way
        return None
    try:
        return _load()
    except (UsageError, InputError) as error:
        say(f"training goes on without its own kernels, slower: {error}")
        return None


@cache
def _load() -> ctypes.CDLL:
    path = compiled.library_path("training", SOURCES, FLAGS)
    what = "the library of training kernels"
    return compiled.load_library(path, open_library, what, SOURCES[0], (FLAGS,), PROOF, "go on without")


def open_library(path: Path) -> ctypes.CDLL:
    """The functions of a library that was built. Raises InputError when it is none, or one of another version."""
    library = compiled.open_library(path, "cmunext_kernels_version", VERSION)
    declare(library)
    return library
