"""Weights files: a network's tensors with the description that makes them usable by whoever has the file (see `metadata`).

`.safetensors` is what training writes. An official checkpoint of the paper's authors (`.pth`, a state_dict) is read as well, with the
preprocessing of their code; nothing in it is ever executed.
"""

import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as content_of
from torch import Tensor, nn

from cmunext import networks
from cmunext.errors import InputError, UsageError
from cmunext.image import preprocess
from cmunext.metadata import KEY, Metadata, unnamed_classes
from cmunext.networks import remap
from cmunext.seal import NAME, check_seal, sealed, with_place
from cmunext.storage import write_bytes

TRUSTED = "CMUNEXT_NETWORKS"  # environment variable: networks "module:callable" that weights files may name, separated by commas
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Weights:
    """A network with its tensors, in eval mode and float32, and what its file says about it."""

    network: nn.Module
    metadata: Metadata

    @property
    def preprocessing(self) -> preprocess.Preprocessing:
        """How an image becomes this network's input, and its logits a mask."""
        return self.metadata.preprocessing


def save(path: str | os.PathLike[str], network: nn.Module, metadata: Metadata) -> None:
    """Write a `.safetensors` file in one step. The same tensors and metadata give the same bytes.

    Raises
    ------
    OSError : when the file cannot be written; what was there stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path, _content(tensors, {KEY: metadata.to_json()}, Path(path)))


def halved(path: str | os.PathLike[str]) -> bytes:
    """The content of a .safetensors file with its float32 tensors as float16 and its metadata as they are; `load` reads it as float32.

    Raises InputError when the file is damaged or was changed, which a new checksum would hide.
    """
    tensors, metadata = _read(Path(path))
    metadata.pop(NAME, None)
    return _content({name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}, metadata, Path(path))


def _content(tensors: dict[str, Tensor], metadata: dict[str, str], source: Path) -> bytes:
    """A .safetensors file with its checksum; without metadata there is no place for one."""
    content = content_of(tensors, metadata)
    return sealed(with_place(content), source) if metadata else content


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file. Raises InputError when it is damaged or was changed."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); fetch or export it again") from error
    check_seal(path)
    return tensors, metadata


def load(path: str | os.PathLike[str]) -> Weights:
    """Read a `.safetensors` file of this program, or an official `.pth` checkpoint of CMUNeXt.

    Raises
    ------
    UsageError : there is no such file, or its suffix is not one of `SUFFIXES`.
    InputError : it is damaged or was changed, does not describe itself, or its tensors do not fit the network that it names.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is no weights file that torch reads; the suffixes are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UsageError(f"the weights file {path} does not exist; check the path")
    if path.suffix.lower() != ".safetensors":
        return load_official(path)
    tensors, properties = _read(path)
    metadata = Metadata.from_properties(properties, str(path))
    _require_trust(metadata.network, path)
    network = networks.create(metadata.network, **metadata.arguments)
    _fill(network, tensors, str(path))
    return Weights(network.eval(), metadata)


def load_official(path: str | os.PathLike[str]) -> Weights:
    """Read a checkpoint of the authors' code: a state_dict under their names, with or without the `module.` prefix.

    Size, input channels and classes follow from the tensors' shapes. The preprocessing is `preprocess.PAPER`, which those weights need.

    Raises
    ------
    InputError : the file is damaged, holds anything but tensors, or is no CMUNeXt of a known size.
    """
    state = _read_state_dict(Path(path))
    name, arguments, tensors = remap.from_official(state, str(path))
    network = networks.create(name, **arguments)
    _fill(network, tensors, str(path))
    if arguments["in_channels"] != 3:
        raise InputError(f"{path} takes {arguments['in_channels']} input channels; official checkpoints are read with 3 (BGR)")
    classes = unnamed_classes(arguments["num_classes"])
    metadata = Metadata(name, arguments, preprocess.PAPER, classes, {"source": "checkpoint with the paper's official keys"})
    return Weights(network.eval(), metadata)


def save_official(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Write the tensors of a CMUNeXt as the authors' code reads them: a `.pth` state_dict under their names, in their order."""
    write_pickled(path, remap.to_official(network.state_dict()))


def write_pickled(path: str | os.PathLike[str], content: Any) -> None:
    """Write what `torch.save` writes, in one step. Raises OSError, leaving what was there."""
    buffer = io.BytesIO()  # torch's own writing to a disk that is full ends in a RuntimeError without a reason
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_pickled(path: Path) -> Any:
    """Read what `write_pickled` or `torch.save` wrote. Raises what `torch.load` does, and RuntimeError when a checksum is wrong."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not look at checksums
        # zipfile raises the last for a compression that it does not know.
        except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise RuntimeError(str(error)) from error
        if damaged:
            raise RuntimeError(f"the checksum of {damaged} in it is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _require_trust(network: str, path: Path) -> None:
    """Refuse a file that names code outside this program, unless the user has named it too: a file must not choose what runs."""
    if ":" in network and network not in os.environ.get(TRUSTED, "").split(","):
        raise InputError(
            f"{path} is of the network {network!r}, which is code outside this program; if you trust it, set the environment "
            f"variable {TRUSTED}={network}"
        )


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        content = read_pickled(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is damaged, or holds Python objects that reading would have to execute; "
            "save the bare state_dict (tensors only) and use that"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a readable PyTorch checkpoint ({told}); fetch it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state_dict; save `model.state_dict()` and use that file")
    return content


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if missing or unknown or wrong:
        told = (
            f"lacks {missing[0]}" if missing
            else f"has the unknown tensor {unknown[0]}" if unknown
            else f"has {sorted(wrong)[0]} of {tuple(tensors[sorted(wrong)[0]].shape)} instead of {tuple(expected[sorted(wrong)[0]].shape)}"
        )  # fmt: skip
        raise InputError(
            f"{source} does not fit its network: it {told} ({len(missing)} missing, {len(unknown)} unknown, {len(wrong)} of another "
            "shape); use the weights of this network"
        )
    network.load_state_dict(dict(tensors))
