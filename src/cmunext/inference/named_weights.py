"""Weights by name: the small ones in the package, and larger ones in a folder beside it."""

import os
from pathlib import Path

from cmunext import zoo
from cmunext.errors import UsageError
from cmunext.inference.backends import SUFFIXES

FOLDER = "CMUNEXT_ZOO"  # environment variable: a folder of further weights; without it, the folder zoo/ of a checkout
_PACKAGE = Path(zoo.__path__[0])
_CHECKOUT = Path(__file__).parents[3] / "zoo"


def bundled_names() -> tuple[str, ...]:
    """The names of the weights in the package."""
    return tuple(sorted(_files((_PACKAGE,), ".onnx")))


def weight_names(suffix: str = ".onnx") -> tuple[str, ...]:
    """The names that may be given in the place of a weights file of that suffix. Raises UsageError when CMUNEXT_ZOO is no folder."""
    return tuple(sorted(_files(_folders(), suffix)))


def weights_path(weights: str | os.PathLike[str], *suffixes: str) -> Path:
    """The file that is meant: a path as it is, and of a name the file of the first suffix that it has one of.

    Raises UsageError when there are no weights of that name, or with none of these suffixes.
    """
    if str(weights).lower().endswith(SUFFIXES):
        return Path(weights)
    folders = _folders()
    for suffix in suffixes:
        if file := _files(folders, suffix).get(str(weights)):
            return file
    known = ", ".join(sorted({name for suffix in suffixes for name in _files(folders, suffix)})) or "none in this installation"
    raise UsageError(
        f"there are no weights {str(weights)!r} as {' or '.join(suffixes)}; by name there are {known}; a file ends in {', '.join(SUFFIXES)}"
    )


def _files(folders: tuple[Path, ...], suffix: str) -> dict[str, Path]:
    """Name -> file; of two with one name, that of the first folder."""
    return {path.stem: path for folder in reversed(folders) for path in folder.glob(f"*{suffix}")}


def _folders() -> tuple[Path, ...]:
    given = os.environ.get(FOLDER)
    if given and not Path(given).is_dir():
        raise UsageError(f"{FOLDER} is {given}, which is no folder; name the folder of your weights, or unset it")
    return _PACKAGE, Path(given or _CHECKOUT)
