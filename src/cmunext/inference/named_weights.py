"""Weights by name: the small ones in the package, and larger ones in a folder beside it."""

import os
from pathlib import Path

from cmunext import zoo
from cmunext.errors import UsageError
from cmunext.inference.backends import SUFFIXES

FOLDER = "CMUNEXT_ZOO"  # environment variable: a folder of further weights; without it, the folder zoo/ of a checkout
_PACKAGE = Path(zoo.__path__[0])
_CHECKOUT = Path(__file__).parents[3] / "zoo"


def weight_names() -> tuple[str, ...]:
    """The names that may be given in the place of a weights file."""
    return tuple(sorted({path.stem for folder in _folders() for path in folder.glob("*.onnx")}))


def weights_path(weights: str | os.PathLike[str], suffix: str = ".onnx") -> Path:
    """The file that is meant: a path as it is, and of a name the file of that suffix.

    Raises UsageError when there are no weights of that name, or not with that suffix.
    """
    if str(weights).lower().endswith(SUFFIXES):
        return Path(weights)
    known = weight_names()
    if str(weights) not in known:
        raise UsageError(
            f"there are no weights {str(weights)!r}; by name there are {', '.join(known) or 'none in this installation'}; "
            f"a file ends in {', '.join(SUFFIXES)}"
        )
    found = [path for folder in _folders() if (path := folder / f"{weights}{suffix}").is_file()]
    if not found:
        raise UsageError(f"the weights {str(weights)!r} are not here as {suffix}; name a file of your own")
    return found[0]


def _folders() -> tuple[Path, ...]:
    return _PACKAGE, Path(os.environ.get(FOLDER) or _CHECKOUT)
