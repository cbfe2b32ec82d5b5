"""One small network, put through PyTorch's exporter once for all tests that only need its result."""

import copy
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from cmunext import networks
from cmunext.export import onnx as exporter
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import Metadata
from cmunext.weights import Weights


def trained(name: str, **arguments: object) -> torch.nn.Module:
    """A network whose batch statistics are not those of initialisation, in evaluation mode."""
    torch.manual_seed(0)
    network = networks.create(name, **arguments)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 64, 64))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return network.eval()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded cases are kept apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("CMUNEXT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def weights() -> Weights:
    """CMUNeXt-S for two classes, at 64 x 64."""
    arguments = {"in_channels": 3, "num_classes": 2}
    metadata = Metadata("cmunext-s", arguments, Preprocessing(64, 64), ("a", "b"), {"seed": 1})
    return Weights(trained("cmunext-s", num_classes=2), metadata)


@pytest.fixture(scope="session")
def graph(weights: Weights) -> bytes:
    """The graph of `weights` as PyTorch's exporter gives it, of any batch and size."""
    return ir.to_proto(exporter.to_onnx(weights, weights.preprocessing, fixed=False)).SerializeToString()


@pytest.fixture
def exported_once(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `export` start from `graph` instead of running PyTorch's exporter again."""
    import onnx

    model = onnx.load_model_from_string(graph)
    monkeypatch.setattr(exporter, "to_onnx", lambda *_, **__: ir.from_proto(copy.deepcopy(model)))
