"""Every network of the registry exports by the same call, quietly, and computes the same at every batch and size that it promises."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tests.networks.fill import fill_by_shape

from cmunext import networks
from cmunext.export import parity
from cmunext.export.onnx import export
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import Metadata
from cmunext.weights import Weights

# Those of one size, and what builds them small.
FIXED = {"transunet": {"image_size": 64}, "medt": {"image_size": 128}, "swin-unet": {"image_size": 64, "window": 2}}

# name -> BatchNorms that stay in the graph: those that a padded convolution reads, or whose result is added to another.
KEPT = {
    "cmunext-s": 13,
    "cmunext": 17,
    "cmunext-l": 27,
    "cmunext-plain-skip": 14,
    "cmunet": 14,
    "mobile-uvit": 13,
    "mobile-uvit-l": 13,
    "medt": 44,
}


def build(name: str) -> Weights:
    arguments = {"in_channels": 3, "num_classes": 2, **FIXED.get(name, {})}
    network = fill_by_shape(networks.create(name, **arguments), gain=0.5 if name.startswith("mobile-uvit") else 0.7)
    side = FIXED.get(name, {"image_size": 64})["image_size"]
    return Weights(network.eval(), Metadata(name, arguments, Preprocessing(side, side), ("a", "b")))


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.names())
def test_export(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = build(name)
    report = export(weights, tmp_path / "x.onnx")
    assert capfd.readouterr() == ("", "")
    assert report.max_abs_diff <= parity.LOGITS
    assert report.equal_pixels >= parity.PIXELS
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    metadata = Metadata.from_properties(session.get_modelmeta().custom_metadata_map)
    assert metadata.export["norms"]["kept"] == KEPT.get(name, 0)
    shape = session.get_inputs()[0].shape
    assert not isinstance(shape[0], int)
    assert [isinstance(side, int) for side in shape[2:]] == [name in FIXED] * 2
    size = (64, 128) if name not in FIXED else tuple(shape[2:])
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = weights.network(images).numpy()
    (logits,) = session.run(None, {"image": images.numpy()})
    assert expected.std() > 1e-3
    np.testing.assert_allclose(logits, expected, rtol=0, atol=parity.LOGITS * max(1, np.abs(expected).max()))
