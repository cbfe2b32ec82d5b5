"""cmunext: lightweight 2-D medical image segmentation, from a folder of images to a network that runs on any device.

The public names load what they need when they are first used; importing the package imports neither torch nor onnxruntime.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOMES = {
    "Segmenter": "cmunext.inference.segmenter",
    "Segmentation": "cmunext.inference.segmenter",
    "InputError": "cmunext.errors",
    "UsageError": "cmunext.errors",
}
_MODULES = ("networks", "losses", "metrics", "weights")

__all__ = [*_HOMES, *_MODULES]

try:
    __version__ = version("cmunext")
except PackageNotFoundError:  # run from a folder of sources that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"cmunext.{name}")
    raise AttributeError(f"module 'cmunext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
