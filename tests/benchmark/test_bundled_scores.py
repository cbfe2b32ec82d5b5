"""The bundled weights on the official validation list they were not trained on: what the README and the card may claim."""

from pathlib import Path

import pytest

from cmunext.benchmark.evaluate import evaluate
from cmunext.data.layout import Layout
from cmunext.demo import demonstrate
from cmunext.inference.named_weights import weight_names
from cmunext.inference.segmenter import Segmenter

NAME, BREAST = "cmunext-s-busi", "cmunext-s-breast"


@pytest.fixture(scope="module")
def busi(shared: Path) -> Layout:
    if NAME not in weight_names():
        pytest.skip(f"this checkout holds no bundled weights {NAME}")
    return Layout.open(shared / "data" / "busi")


@pytest.fixture(scope="module")
def through_onnx(busi: Layout):
    return evaluate(Segmenter.load(NAME), busi, busi.read_list("busi_val1.txt"))


def test_iou_on_the_official_list(through_onnx):
    summary = through_onnx.summary()
    assert (summary["n"], summary["failures"]) == (195, [])
    assert summary["per_image"]["iou"] == pytest.approx(0.6958, abs=0.002)


@pytest.mark.slow
def test_torch_gives_the_same_score(busi, through_onnx):
    pytest.importorskip("torch", reason="torch is not installed")
    through_torch = evaluate(Segmenter.load(NAME, backend="torch"), busi, busi.read_list("busi_val1.txt")).summary()
    assert through_torch["per_image"]["iou"] == pytest.approx(through_onnx.summary()["per_image"]["iou"], abs=0.002)


def test_the_breast_model_finds_phantoms_and_claims_no_held_out_score(tmp_path):
    if BREAST not in weight_names():
        pytest.skip(f"this checkout holds no bundled weights {BREAST}")
    segmenter = Segmenter.load(BREAST, "onnxruntime")
    found = demonstrate(segmenter, tmp_path, count=8)
    assert found["mean_iou"] >= 0.9
    training = segmenter.metadata.training
    assert training["validation_list"] == "none"
    assert "validation" not in training
    assert len(training["learnt_from"]) == 2521, "2522 images, of which one pair has the same pixels"


@pytest.mark.slow
def test_the_base_network_of_a_checkout_on_the_official_list(busi):
    if "cmunext-busi" not in weight_names():
        pytest.skip("there is no zoo/cmunext-busi.onnx beside this installation")
    summary = evaluate(Segmenter.load("cmunext-busi", "onnxruntime"), busi, busi.read_list("busi_val1.txt")).summary()
    assert (summary["n"], summary["learnt_from"]) == (195, 0)
    assert summary["per_image"]["iou"] == pytest.approx(0.6816, abs=0.002)
