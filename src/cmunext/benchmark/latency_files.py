"""The files that `latency` runs: a network's weights in the form that each backend opens, made where they are not there."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmunext.errors import InputError, UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends import BACKENDS, SUFFIXES
from cmunext.inference.named_weights import weight_names, weights_path
from cmunext.metadata import Metadata
from cmunext.phantom import simulate

if TYPE_CHECKING:
    from torch import nn

SETTLING = 4  # batches of simulated images over which the statistics of a random network are taken
BATCH = 4


@dataclass(frozen=True)
class Prepared:
    """A network, the file that each backend opens, and how images become its input."""

    name: str
    files: dict[str, Path]
    metadata: Metadata


def prepare_all(
    networks: Sequence[str], backends: Collection[str], folder: Path, progress: Callable[[str], None]
) -> tuple[list[Prepared], list[str]]:
    """The files of each network for these backends; what is made goes into `folder`.

    Returns the networks, and a sentence for each that exists but cannot be exported. Raises UsageError for what does not exist, and
    InputError for a file that cannot be used.
    """
    prepared, troubles = [], []
    for number, name in enumerate(networks):
        progress(f"preparing {name}")
        files = _existing(name, folder / f"{number}.safetensors")
        if "onnx" not in files and set(backends) - {"torch"}:
            try:
                files["onnx"] = _export(files["torch"], folder / f"{number}.onnx")
            except InputError as error:
                troubles.append(f"{name}: {error}")
        opened = {backend: files[_form(backend)] for backend in BACKENDS if _form(backend) in files}
        prepared.append(Prepared(name, opened, _metadata(files)))
    return prepared, troubles


def settle(network: "nn.Module", preprocessing: Preprocessing) -> None:
    """Give the BatchNorms of a network with random weights the statistics of simulated images, in place; it ends in eval mode.

    With those that it is built with, activations would grow or vanish from layer to layer as they do in no trained network.
    """
    import torch

    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
    network.train()
    side = max(preprocessing.height, preprocessing.width, 64)
    with torch.no_grad():
        for first in range(0, SETTLING * BATCH, BATCH):
            images = [preprocessing.to_input(simulate(seed, side, side)[0]) for seed in range(first, first + BATCH)]
            network(torch.from_numpy(np.concatenate(images)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _existing(name: str, random: Path) -> dict[str, Path]:
    """Form ("torch" or "onnx") -> file: what is there, or for a registered network `random`, made here."""
    if name.lower().endswith(SUFFIXES) or name in _names():
        path = weights_path(name, ".onnx", ".safetensors")
        if not path.is_file():
            raise UsageError(f"{path}: there is no such weights file; check the name")
        return _with_twin(path) if path.suffix.lower() == ".onnx" else {"torch": path}
    _build(name, random)
    return {"torch": random}


def _names() -> list[str]:
    """The names of weights, in either form."""
    return sorted({*weight_names(), *weight_names(".safetensors")})


def _with_twin(path: Path) -> dict[str, Path]:
    """An .onnx file, and the .safetensors of the same name where it lies beside: what it is compared with."""
    twin = path.with_suffix(".safetensors")
    return {"onnx": path, "torch": twin} if twin.is_file() else {"onnx": path}


def _form(backend: str) -> str:
    return "torch" if backend == "torch" else "onnx"


def _build(name: str, path: Path) -> None:
    """Write a registered network with random weights, the same ones every time."""
    if not find_spec("torch"):
        named = ", ".join(weight_names()) or "none"  # what has .onnx
        raise UsageError(f"{name!r} is built by PyTorch, which is not installed; give .onnx weights, or a name ({named})")
    import torch

    from cmunext import networks, weights

    if ":" not in name and name not in networks.names():
        raise UsageError(
            f"there is no network and there are no weights {name!r}; networks are {', '.join(networks.names())}; "
            f"weights are {', '.join(_names()) or 'none'}; a file ends in {', '.join(SUFFIXES)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.create(name)
        height, width = getattr(network, "image_size", (256, 256))
        preprocessing = Preprocessing(height=height, width=width)
        settle(network, preprocessing)
    arguments = {"in_channels": preprocessing.in_channels, "num_classes": 1}
    weights.save(path, network, Metadata(name, arguments, preprocessing, ("lesion",)))


def _export(weights: Path, path: Path) -> Path:
    if not find_spec("torch"):
        raise UsageError(f"{weights}: PyTorch, which is not installed, makes .onnx of it; give .onnx weights")
    from cmunext.export.onnx import export
    from cmunext.weights import load

    export(load(weights), path)
    return path


def _metadata(files: dict[str, Path]) -> Metadata:
    if "onnx" in files:
        from cmunext.inference.backends import onnx

        return onnx.load(files["onnx"]).metadata
    from cmunext.weights import load

    return load(files["torch"]).metadata
