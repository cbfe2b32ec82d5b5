"""The one road from an image to a measured lesion, over a network small enough to know its answer."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.tiny_network import DARK, dark_discs, describe, write_network

from cmunext.errors import InputError, UsageError
from cmunext.image.files import write_image
from cmunext.inference import backends
from cmunext.inference.named_weights import weight_names
from cmunext.inference.segmenter import Segmenter


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("weights") / "tiny.onnx")


def test_a_dark_disc_is_found_where_it_lies_at_native_size(network: Path) -> None:
    image = dark_discs((120, 160), ((50, 60, 20),))
    segmentation = Segmenter.load(network)(image)
    truth = image < 100
    assert segmentation.mask.shape == segmentation.probability.shape == (120, 160)
    assert segmentation.mask.dtype == bool
    assert segmentation.probability.dtype == np.float32
    intersection, union = (segmentation.mask & truth).sum(), (segmentation.mask | truth).sum()
    assert intersection / union > 0.9  # the network works at 64 x 64
    (lesion,) = segmentation.lesions
    assert lesion.centroid == pytest.approx((50, 60), abs=0.6)
    assert lesion.area == segmentation.mask.sum()
    assert lesion.area_mm2 is None
    assert segmentation.classes == ("lesion",)


def test_a_notebook_shows_what_it_is_in_a_line(network: Path) -> None:
    segmenter = Segmenter.load(network)
    assert repr(segmenter) == "Segmenter(tiny, 64 x 64, onnxruntime in float32)"
    assert "array" not in repr(segmenter(dark_discs((120, 160), ((50, 60, 20),))))


def test_path_grey_and_colour_are_the_same(network: Path, tmp_path: Path) -> None:
    image = dark_discs()
    write_image(tmp_path / "image.png", image)
    run = Segmenter.load(str(network))
    by_path, grey, colour = run(tmp_path / "image.png"), run(image), run(np.dstack([image] * 3))
    np.testing.assert_array_equal(by_path.probability, grey.probability)
    np.testing.assert_array_equal(colour.probability, grey.probability)


def test_the_logits_are_those_of_the_preprocessed_image(network: Path) -> None:
    image = dark_discs((64, 64))
    logits = Segmenter.load(network).predict_logits(image)
    expected = -20 * (image / 255 - 0.5) / 0.5 - 10
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)
    np.testing.assert_array_equal(DARK.to_mask(logits, (64, 64))[0], image < 64)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.97, 1e-7, 1 - 1e-7])
def test_a_mask_is_where_the_probability_is_above_the_threshold_bit_for_bit(threshold: float) -> None:
    """Also where it is only worked out near the mask, and for logits within float32's errors of the threshold."""
    rng, sharp = np.random.default_rng(0), replace(DARK, threshold=threshold)
    edge = np.log(threshold / (1 - threshold))
    noise = cv2.GaussianBlur(rng.normal(edge - 4, 20, (3, 40, 50)).astype(np.float32).transpose(1, 2, 0), (0, 0), 3)
    nowhere = np.full((40, 50), -90, np.float32)
    fine = np.linspace((edge - 1e-6, edge - 1e-3, edge - 2), (edge + 1e-6, edge + 1e-3, edge + 2), 64 * 64, dtype=np.float32)
    for logits, size in (
        (np.dstack([noise, nowhere]).transpose(2, 0, 1), (131, 97)),
        (fine.T.reshape(3, 64, 64), (64, 64)),
    ):
        mask, probability = sharp.to_foreground(logits, size)
        whole = sharp.to_probability(logits, size)
        np.testing.assert_array_equal(mask, whole > threshold)
        np.testing.assert_array_equal(probability[mask], whole[mask])
        assert 0 < mask.mean() < 1


def test_spacing_gives_millimetres(network: Path) -> None:
    (lesion,) = Segmenter.load(network)(dark_discs(), spacing=(0.2, 0.1)).lesions
    assert lesion.area_mm2 == pytest.approx(lesion.area * 0.02)
    assert lesion.major_axis_mm == pytest.approx(8, rel=0.1)
    assert lesion.minor_axis_mm == pytest.approx(4, rel=0.1)


def test_classes_stay_apart_and_a_background_is_no_lesion(tmp_path: Path) -> None:
    path = write_network(tmp_path / "two.onnx", describe(classes=("lesion", "cyst")))
    image = dark_discs((100, 100), ((25, 25, 12), (70, 70, 15)))
    both = Segmenter.load(path)(image)
    assert both.mask.shape == both.probability.shape == (2, 100, 100)
    assert [lesion.class_index for lesion in both.lesions] == [0, 0, 1, 1]
    path = write_network(tmp_path / "softmax.onnx", describe(replace(DARK, activation="softmax"), ("background", "lesion")))
    soft = Segmenter.load(path)(image)
    np.testing.assert_allclose(soft.probability.sum(axis=0), 1, atol=1e-6)
    assert {lesion.class_index for lesion in soft.lesions} == {1}


def test_a_grey_network(tmp_path: Path) -> None:
    grey = replace(DARK, channels="grey", mean=(0.5,), std=(0.5,))
    run = Segmenter.load(write_network(tmp_path / "grey.onnx", describe(grey)))
    assert len(run(dark_discs()).lesions) == len(run(np.dstack([dark_discs()] * 3)).lesions) == 1


def test_threads_do_not_change_the_answer(network: Path) -> None:
    answers = [Segmenter.load(network, threads=threads)(dark_discs()).probability for threads in (None, 1, 2)]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_the_backend_says_what_it_is(network: Path) -> None:
    backend = Segmenter.load(network).backend
    assert (backend.name, backend.precision) == ("onnxruntime", "float32")
    batch = np.zeros((3, 3, 32, 48), np.float32)
    assert backend(batch).shape == (3, 1, 32, 48)


def test_neither_segmenting_nor_reading_imports_torch(network: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", dark_discs())
    program = (
        "import json, sys; import cmunext; from cmunext import Segmenter; from cmunext.inference import results;"
        f"found = Segmenter.load({str(network)!r})({str(tmp_path / 'image.png')!r});"
        "print(json.dumps([len(found.lesions), [name for name in ('torch', 'scipy', 'pandas', 'rich') if name in sys.modules]]))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [1, []]


def test_weights_are_found_by_name_in_a_folder_too(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMUNEXT_ZOO", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"CMUNEXT_ZOO is .*none, which is no folder"):
        Segmenter.load("small-one")
    monkeypatch.setenv("CMUNEXT_ZOO", str(tmp_path))
    of_the_package = weight_names()
    (tmp_path / "small-one.onnx").write_bytes(network.read_bytes())
    (tmp_path / "small-one.json").write_text("{}")
    assert weight_names() == tuple(sorted((*of_the_package, "small-one")))
    assert len(Segmenter.load("small-one")(dark_discs()).lesions) == 1
    assert Segmenter.load("small-one", backend="onnxruntime").metadata.network == "tiny"
    with pytest.raises(UsageError, match=r"no weights 'other' as .onnx or .safetensors.*; by name there are .*small-one"):
        Segmenter.load("other")
    with pytest.raises(UsageError, match="no backend 'tflite'"):
        Segmenter.load("small-one", backend="tflite")
    with pytest.raises(UsageError, match=r"no weights 'small-one' as \.safetensors"):
        Segmenter.load("small-one", backend="torch")
    (tmp_path / "no-twin.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"no-twin\.safetensors"):  # found, and opened
        Segmenter.load("no-twin")


@pytest.mark.parametrize("spacing", [0.1, (0.1, 0.2, 0.3), (0.1, -1), ("a", "b"), (float("nan"), 1)])
def test_a_spacing_that_is_none(network: Path, spacing) -> None:
    with pytest.raises(UsageError, match="give two positive numbers"):
        Segmenter.load(network)(dark_discs(), spacing)


def test_an_image_that_is_neither_path_nor_array(network: Path) -> None:
    with pytest.raises(UsageError, match="the image is a list; give a path"):
        Segmenter.load(network)(dark_discs().tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tflite"}, "no backend 'tflite'"),
        ({"backend": "torch"}, "torch opens .safetensors"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_a_wrong_call(network: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Segmenter.load(network, **arguments)


def test_cuda_that_is_not_there_is_told(network: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime supports CUDA")
    with pytest.raises(UsageError, match="install onnxruntime-gpu"):
        Segmenter.load(network, device="cuda")


def test_missing_folder_empty_and_odd_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such weights file"):
        Segmenter.load(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="folder"):
        Segmenter.load(tmp_path / "folder.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InputError, match="empty"):
        Segmenter.load(tmp_path / "empty.onnx")
    with pytest.raises(UsageError, match="there are no weights"):
        Segmenter.load(tmp_path / "weights.tflite")
    (tmp_path / "empty.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match="weights files end in"):
        backends.open_weights(
            tmp_path.joinpath("empty.onnx").rename(tmp_path / "weights.tflite").with_name("weights.tflite")
        ) or None


def test_bad_models_are_refused_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            Segmenter.load(path)
        assert not isinstance(caught.value, UsageError)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    text = tmp_path / "text.onnx"
    text.write_text("this is no model\n" * 30)
    refused(text, "cannot be opened as an ONNX model")
    whole = write_network(tmp_path / "whole.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(cut, "cannot be opened as an ONNX model|does not describe itself")
    refused(write_network(tmp_path / "foreign.onnx", properties={}), "does not describe itself")
    refused(write_network(tmp_path / "damaged.onnx", properties={"cmunext": "{"}), "not JSON")
    refused(write_network(tmp_path / "names.onnx", names=("x", "y")), "must have the input image and the output logits")
    lying = describe(replace(DARK, channels="grey", mean=(0.5,), std=(0.5,))).to_json()
    refused(write_network(tmp_path / "channels.onnx", properties={"cmunext": lying}), "the model's image is")
    lying = describe(classes=("a", "b")).to_json()
    refused(write_network(tmp_path / "classes.onnx", properties={"cmunext": lying}), "the model's logits is")
    assert capfd.readouterr().err == ""


def test_weights_that_give_nan_are_not_believed(tmp_path: Path) -> None:
    run = Segmenter.load(write_network(tmp_path / "nan.onnx", gain=float("nan")))
    with pytest.raises(InputError, match="NaN or infinite logits"):
        run(dark_discs())


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.float32), np.zeros((9, 9, 4), np.uint8), np.zeros((0, 9), np.uint8)])
def test_an_array_that_is_no_image_is_refused(network: Path, image: np.ndarray) -> None:
    with pytest.raises(InputError, match="an image must be uint8"):
        Segmenter.load(network)(image)
