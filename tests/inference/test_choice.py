"""What `auto` takes, and that its memory can be damaged, deleted or forbidden without harm."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.tiny_network import write_network

from cmunext.errors import InputError, UsageError
from cmunext.inference.backends import choice, open_weights
from cmunext.inference.backends import onnx as onnx_backend
from cmunext.inference.native import library as native_library

pytest.importorskip("openvino")
from cmunext.inference.backends import openvino

ORT, OV, OV16 = "onnxruntime float32", "openvino float32", "openvino bfloat16"
OURS, OURS16 = "native float32", "native bfloat16"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "tiny.onnx")


def measured(times: dict[str, float], agreement: float | None = None) -> dict:
    """What `measure` gives; in bfloat16 both runtimes agree alike."""
    return {"median_ms": times, "agreement": {name: agreement for name in times if name.endswith("bfloat16")}}


@pytest.mark.parametrize(
    ("times", "agreement", "precision", "expected"),
    [
        ({ORT: 3, OV: 2}, None, None, ("openvino", None)),
        ({ORT: 2, OV: 3}, None, None, ("onnxruntime", None)),
        ({ORT: 3, OV: 2, OV16: 1}, 0.9995, None, ("openvino", "bfloat16")),
        ({ORT: 3, OV: 2, OV16: 1}, 0.9984, None, ("openvino", None)),
        ({ORT: 3, OV: 2, OV16: 1}, None, None, ("openvino", None)),
        ({ORT: 3, OV: 2, OV16: 1}, 1.0, "float32", ("openvino", "float32")),
        ({ORT: 2, OV: 3, OV16: 1}, 1.0, "float32", ("onnxruntime", "float32")),
        ({ORT: 1, OV: 3, OV16: 2}, 1.0, None, ("onnxruntime", None)),
        ({ORT: 1, OV: 3, OV16: 2}, 0.5, "bfloat16", ("openvino", "bfloat16")),
        ({ORT: 4, OV: 3, OV16: 2, OURS: 2.5, OURS16: 1}, 0.9995, None, ("native", "bfloat16")),
        ({ORT: 4, OV: 3, OV16: 2, OURS: 2.5, OURS16: 1}, 0.9, None, ("native", None)),
        ({ORT: 4, OV: 3, OV16: 1, OURS: 2.5, OURS16: 2}, 0.9, "bfloat16", ("openvino", "bfloat16")),
        ({ORT: 4, OURS: 2.5}, None, "bfloat16", ("openvino", "bfloat16")),
    ],
)
def test_the_fastest_that_is_allowed(times: dict, agreement: float | None, precision: str | None, expected: tuple) -> None:
    assert choice.best(measured(times, agreement), precision) == expected


def test_it_is_measured_once_for_a_file_a_machine_and_a_number_of_threads(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fake(path: Path, threads: int | None) -> dict:
        calls.append((path.name, threads))
        return measured({ORT: 3.0, OV: 2.0})

    monkeypatch.setattr(choice, "measure", fake)
    assert open_weights(network).name == "onnxruntime"
    assert calls == []
    assert not cache.exists()
    for _ in range(2):
        backend = open_weights(network, measure=True)
        assert (backend.name, backend.precision) == ("openvino", "float32")
    assert open_weights(network).name == "openvino"  # remembered, and so taken for a single image as well
    assert calls == [("tiny.onnx", None)]
    open_weights(network, threads=1, measure=True)
    network.rename(network.with_name("renamed.onnx"))
    assert open_weights(network.with_name("renamed.onnx")).name == "openvino"
    write_network(network, gain=-30)
    assert open_weights(network).name == "onnxruntime"
    assert calls == [("tiny.onnx", None), ("tiny.onnx", 1)]
    monkeypatch.setattr(choice, "processor", lambda: "another machine")
    assert open_weights(network.with_name("renamed.onnx")).name == "onnxruntime"
    monkeypatch.undo()
    (cache / choice.FILE).unlink()
    assert open_weights(network.with_name("renamed.onnx")).name == "onnxruntime"


def test_a_real_measurement(network: Path, cache: Path) -> None:
    backend = open_weights(network, threads=1, measure=True)
    (entry,) = json.loads((cache / choice.FILE).read_text()).values()
    assert {ORT, OV} <= entry["median_ms"].keys()
    assert (OV16 in entry["median_ms"]) == openvino.runs_bfloat16()
    assert all(0 < time < 1000 for time in entry["median_ms"].values())
    fastest, precision = choice.best(entry)
    assert (backend.name, backend.precision) == (fastest, precision or "float32")


@pytest.mark.skipif(not openvino.runs_bfloat16(), reason="this CPU does not compute in bfloat16")
def test_bfloat16_is_judged_by_its_masks(tmp_path: Path) -> None:
    gentle = choice.measure(write_network(tmp_path / "gentle.onnx", gain=-20), 1)
    assert gentle["agreement"][OV16] > 0.97
    path = write_network(tmp_path / "cancelling.onnx")
    model = onnx.load(path)
    weight = np.array([100.03, -200, 99.97], np.float32).reshape(1, 3, 1, 1)  # sums that cancel to what bfloat16 cannot hold
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([0.001], np.float32), "bias"))
    onnx.save(model, path)
    cancelling = choice.measure(path, 1)
    assert (cancelling["agreement"][OV16] or 0) < choice.TOLERANCE
    assert choice.best({**cancelling, "median_ms": {ORT: 3, OV: 2, OV16: 1}}) == ("openvino", None)
    blank = choice.measure(write_network(tmp_path / "blank.onnx", gain=0), 1)
    assert blank["agreement"][OV16] is None  # empty masks agree in anything


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"%s": 1}', '{"%s": {"median_ms": {}}}', '{"%s": {"median_ms": []}}']
)
def test_a_damaged_memory_is_measured_again(network: Path, cache: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    key = choice._key(network, None, choice._others())
    (cache / choice.FILE).write_text(content.replace("%s", key))
    assert open_weights(network).name == "onnxruntime"
    monkeypatch.setattr(choice, "measure", lambda path, threads: measured({ORT: 3.0, OV: 2.0}))
    assert open_weights(network, measure=True).name == "openvino"
    assert open_weights(network).name == "openvino"


def test_a_memory_that_cannot_be_written_or_read(network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(choice, "measure", lambda path, threads: measured({ORT: 3.0, OV: 2.0}))
    assert open_weights(network, measure=True).name == "openvino"
    assert cache.read_text() == "a file where the folder should be"


def test_each_runtime_in_bfloat16_is_judged_by_itself() -> None:
    times = {ORT: 4, OV: 3, OV16: 1, OURS: 3.5, OURS16: 2}
    assert choice.best({"median_ms": times, "agreement": {OV16: 0.99, OURS16: 0.9999}}) == ("native", "bfloat16")
    assert choice.best({"median_ms": times, "agreement": {OV16: 0.9999, OURS16: 0.99}}) == ("openvino", "bfloat16")


def test_the_native_library_counts_once_it_is_built(network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native_library.available():
        pytest.skip("there is no C++ compiler")
    assert OURS not in choice.measure(network, 1)["median_ms"]  # nothing is built by the way
    monkeypatch.setattr(choice, "measure", lambda path, threads: measured({ORT: 3.0, OV: 2.0}))
    assert choice.choose(network, 1, measure_now=True) == ("openvino", None)
    monkeypatch.setattr(native_library, "is_built", lambda: True)
    assert choice.choose(network, 1) == ("openvino", None)  # that was measured, and holds until all three are
    monkeypatch.setattr(choice, "measure", lambda path, threads: measured({ORT: 3.0, OV: 2.0, OURS: 1.0}))
    assert choice.choose(network, 1, measure_now=True) == choice.choose(network, 1) == ("native", None)


def test_without_other_runtimes(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_others", list)
    assert open_weights(network, measure=True).name == "onnxruntime"


def test_what_only_openvino_can_is_taken_there(network: Path) -> None:
    assert open_weights(network, streams=2).name == "openvino"
    if openvino.runs_bfloat16():
        assert open_weights(network, precision="bfloat16").precision == "bfloat16"


def test_a_bad_file_is_told_when_it_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_text("no model")
    with pytest.raises(InputError, match="cannot be opened as an ONNX model"):
        open_weights(path, measure=True)


@pytest.mark.parametrize(
    ("device", "provider", "settings", "precision"),
    [
        ("cuda", "CUDAExecutionProvider", {"use_tf32": "0"}, "float32"),
        ("tensorrt", "TensorrtExecutionProvider", {}, "tf32"),
        ("coreml", "CoreMLExecutionProvider", {"ModelFormat": "MLProgram"}, "float32"),
        ("directml", "DmlExecutionProvider", {}, "float32"),
    ],
)
def test_providers_of_onnxruntime_are_passed_through(
    network: Path, monkeypatch: pytest.MonkeyPatch, device: str, provider: str, settings: dict, precision: str
) -> None:
    with pytest.raises(UsageError, match=f"device is '{device}', which this onnxruntime does not support"):
        open_weights(network, device=device)
    asked, real = [], onnxruntime.InferenceSession

    class Session(real):
        def __init__(self, path, options, providers):
            asked.clear()
            asked.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [name for name, _ in asked] if loads else ["CPUExecutionProvider"]

    loads = True
    monkeypatch.setattr(onnx_backend.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnx_backend.onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    backend = open_weights(network, device=device)
    assert asked[0] == (provider, settings)
    assert asked[-1][0] == "CPUExecutionProvider"
    assert len(asked) == 2
    assert (backend.name, backend.precision) == ("onnxruntime", precision)
    if precision != "float32":
        with pytest.raises(UsageError, match=f"computes in {precision}, not in float32"):
            open_weights(network, device=device, precision="float32")
    loads = False  # the provider is compiled in, but its driver is missing: ONNX Runtime would go on with the CPU
    with pytest.raises(InputError, match="cannot be loaded"):
        open_weights(network, device=device)
