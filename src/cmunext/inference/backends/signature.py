"""What every .onnx file of this program promises, whichever runtime opens it: its one input, its one output, its arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmunext.errors import InputError
from cmunext.metadata import Metadata

INPUT, OUTPUT = "image", "logits"
PRECISION = "precision"  # an entry of its own in the model's metadata; without it the arithmetic is float32


@dataclass(frozen=True)
class Port:
    """An input or output as a runtime tells it: `kind`, in the runtime's words, and `shape`, with None for what is open."""

    kind: str
    is_float32: bool
    shape: Sequence[int | None]


def no_model(path: Path, reason: str) -> InputError:
    """What is raised when a runtime cannot open a file."""
    return InputError(f"{path}: it cannot be opened as an ONNX model ({reason}); copy or export it again")


def not_run(shape: Sequence[int], error: Exception) -> InputError:
    """What is raised when a runtime cannot run a network that it has opened on a batch of that shape."""
    sizes, reason = " x ".join(map(str, shape[1:])), " ".join(str(error).split())[-160:]
    return InputError(f"the network cannot be run on an input of {sizes} ({reason}); export its weights again")


def check_signature(ports: Mapping[str, Port], metadata: Metadata, path: Path) -> None:
    """The model's one input and one output must be what its metadata promises; a size that the file leaves open fits anything.

    Raises InputError where they are not.
    """
    size = (metadata.preprocessing.height, metadata.preprocessing.width)
    expected = {INPUT: (metadata.in_channels, *size), OUTPUT: (metadata.num_classes, *size)}
    if set(ports) != set(expected):
        raise InputError(
            f"{path}: the model has {', '.join(sorted(ports))}; it must have the input {INPUT} and the output {OUTPUT}"
        )
    for name, promised in expected.items():
        port = ports[name]
        fits = len(port.shape) == 4 and all(
            has is None or has == want for has, want in zip(port.shape[1:], promised, strict=True)
        )
        fits = fits and port.shape[0] != 0
        if not fits or not port.is_float32:
            shape = ["N" if size is None else size for size in port.shape]
            raise InputError(
                f"{path}: the model's {name} is {port.kind} of {shape}, and its metadata promises "
                f"float32 of N x {' x '.join(map(str, promised))}; export the weights again"
            )
