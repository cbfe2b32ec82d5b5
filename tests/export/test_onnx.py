"""Exported files compute what PyTorch computes, describe themselves, and are not written when they disagree."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cmunext import networks
from cmunext.errors import InputError, UsageError
from cmunext.export import onnx as exporter
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import KEY, Metadata
from cmunext.weights import Weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    network = networks.create("cmunext-s", num_classes=2)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 64, 64))  # batch statistics that are not those of initialisation
    arguments = {"in_channels": 3, "num_classes": 2}
    return Weights(network.eval(), Metadata("cmunext-s", arguments, Preprocessing(64, 64), ("a", "b"), {"seed": 1}))


def test_same_logits_at_any_batch_and_size(weights: Weights, tmp_path: Path) -> None:
    difference = exporter.export(weights, tmp_path / "x.onnx")
    assert difference <= exporter.TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert Metadata.from_properties(session.get_modelmeta().custom_metadata_map) == weights.metadata
    for shape in ((1, 3, 64, 64), (3, 3, 96, 160)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = weights.network(images).numpy()
        (logits,) = session.run(None, {"image": images.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert KEY in session.get_modelmeta().custom_metadata_map


def test_a_file_that_disagrees_is_not_written(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.onnx").write_bytes(b"earlier")
    monkeypatch.setattr(exporter, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differs from PyTorch"):
        exporter.export(weights, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_the_suffix_is_checked_first(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        exporter.export(weights, tmp_path / "x.bin")
