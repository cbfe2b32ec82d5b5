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
    return _names((_PACKAGE,), ".onnx")


def weight_names(suffix: str = ".onnx") -> tuple[str, ...]:
    """The names that may be given in the place of a weights file of that suffix. Raises UsageError when CMUNEXT_ZOO is no folder."""
    return _names(_folders(), suffix)


def weights_path(weights: str | os.PathLike[str], suffix: str = ".onnx") -> Path:
    """The file that is meant: a path as it is, and of a name the file of that suffix.

    Raises UsageError when there are no weights of that name, or not with that suffix.
    """
    if str(weights).lower().endswith(SUFFIXES):
        return Path(weights)
    known = weight_names(suffix)
    if str(weights) not in known:
        raise UsageError(
            f"there are no weights {str(weights)!r} as {suffix}; by name there are {', '.join(known) or 'none in this installation'}; "
            f"a file ends in {', '.join(SUFFIXES)}"
        )
    return next(path for folder in _folders() if (path := folder / f"{weights}{suffix}").is_file())


def _names(folders: tuple[Path, ...], suffix: str) -> tuple[str, ...]:
    return tuple(sorted({path.stem for folder in folders for path in folder.glob(f"*{suffix}")}))


def _folders() -> tuple[Path, ...]:
    given = os.environ.get(FOLDER)
    if given and not Path(given).is_dir():
        raise UsageError(f"{FOLDER} is {given}, which is no folder; name the folder of your weights, or unset it")
    return _PACKAGE, Path(given or _CHECKOUT)
