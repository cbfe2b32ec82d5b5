"""The native backend: our own C++ gives what ONNX Runtime gives, for CMUNeXt of any shape and on whatever instructions it is built for."""

import gc
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.tiny_network import describe, write_network

from cmunext import compiled
from cmunext.errors import InputError, UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.backends import choice, open_weights
from cmunext.inference.backends.signature import PRECISION
from cmunext.inference.named_weights import weight_names, weights_path
from cmunext.inference.native import library
from cmunext.metadata import KEY, Metadata
from cmunext.phantom import simulate

if not library.available():
    pytest.skip("there is no C++ compiler", allow_module_level=True)
from cmunext.inference.backends import native

SIZES = ((64, 64), (48, 80), (160, 32), (16, 48))  # the last maps: less than a vector, no multiple of one, or one row
OTHER_PROCESSORS = ["haswell", "x86-64"]  # vectors of 8 and of 4 numbers
BY_TILES = """
import sys
from pathlib import Path
import numpy as np
from cmunext.inference.backends import open_weights
from cmunext.inference.native import library

library.FLAGS = (*library.FLAGS, "-mamx-tile", "-mamx-bf16")
assert library.load_library().cmunext_bfloat16() == 2, "the unit was not taken"
weights, inputs, found = sys.argv[1:]
networks = {threads: open_weights(Path(weights), "native", precision="bfloat16", threads=threads) for threads in (1, 2)}
np.savez(found, **{f"{name} by {threads}": networks[threads](batch) for name, batch in np.load(inputs).items() for threads in (1, 2)})
"""
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="builds for x86 processors")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library is built once for all tests, apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "native"
    monkeypatch.setenv("CMUNEXT_CACHE", str(folder))
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache in which nothing was built yet; what is built there is forgotten behind the test."""
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    library.load_library.cache_clear()
    yield tmp_path / "cache"
    library.load_library.cache_clear()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CMUNeXt of grey images, three classes, depths, widths and kernels that are nobody's, as an .onnx file."""
    torch = pytest.importorskip("torch")
    from cmunext.benchmark.latency_files import settle
    from cmunext.export.onnx import export
    from cmunext.networks.cmunext import CMUNeXt
    from cmunext.weights import Weights

    torch.manual_seed(0)
    network = partial(CMUNeXt, widths=(8, 24, 8, 40, 16), depths=(2, 1, 1, 2, 1), kernels=(5, 3, 9, 7, 11))(1, 3)
    preprocessing = Preprocessing(height=64, width=64, channels="grey", mean=(0.3,), std=(0.2,))
    settle(network, preprocessing)
    metadata = Metadata("odd", {"in_channels": 1, "num_classes": 3}, preprocessing, ("a", "b", "c"))
    path = tmp_path_factory.mktemp("native") / "odd.onnx"
    export(Weights(network.eval(), metadata), path)
    return path


def bundled(name: str) -> Path:
    if name not in weight_names():
        pytest.skip(f"the weights {name} are not in this installation")
    return weights_path(name, ".onnx")


def inputs(path: Path, size: tuple[int, int], count: int = 1) -> np.ndarray:
    """Simulated images as the network's input, cut to a size of their own."""
    seen = open_weights(path, "onnxruntime").metadata.preprocessing
    return np.concatenate([seen.to_input(simulate(seed, 256, 256)[0]) for seed in range(count)])[..., : size[0], : size[1]]


def check_equal(path: Path, size: tuple[int, int]) -> None:
    """float32 is as near to ONNX Runtime as two ways to sum float32 numbers are."""
    batch = inputs(path, size)
    expected = open_weights(path, "onnxruntime", threads=1)(batch)
    ours = open_weights(path, "native", threads=1)(batch)
    assert ours.shape == expected.shape
    assert ours.dtype == np.float32
    scale = np.abs(expected).max()
    assert scale > 0.5  # not an empty answer
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5 * scale)
    assert np.mean((ours > 0) != (expected > 0)) < 5e-4  # logits of random networks lie close to 0


@pytest.mark.parametrize("size", SIZES)
def test_any_shape_of_cmunext_gives_what_onnxruntime_gives(odd: Path, size: tuple[int, int]) -> None:
    check_equal(odd, size)


@pytest.mark.parametrize("name", ["cmunext-s-busi", "cmunext-s-breast", "cmunext-busi"])
def test_weights_that_come_along_give_what_onnxruntime_gives(name: str) -> None:
    path = bundled(name)
    seen = open_weights(path, "onnxruntime").metadata.preprocessing
    check_equal(path, (seen.height, seen.width))


@on_x86
@pytest.mark.parametrize("processor", OTHER_PROCESSORS)
def test_processors_with_narrower_vectors(odd: Path, processor: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FLAGS", tuple(flag.replace("native", processor) for flag in library.FLAGS))
    for size in SIZES:
        check_equal(odd, size)
    with pytest.raises(UsageError, match="AVX-512 BF16"):
        open_weights(odd, "native", precision="bfloat16")


@on_x86
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="decodes a signal as Linux hands it over")
def test_the_matrix_unit(odd: Path, empty_cache: Path, tmp_path: Path) -> None:
    """Its very instructions, on the CPU's own unit or carried out by matrix_unit.c: sums in another order than in vectors, else the same."""
    if not library.load_library().cmunext_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16")
    unit, found = tmp_path / "unit.so", tmp_path / "found.npz"
    source = Path(__file__).with_name("matrix_unit.c")
    subprocess.run([*(compiled.compiler() or []), "-x", "c", "-O2", "-shared", "-fPIC", source, "-o", unit, "-ldl"], check=True)
    sizes = {f"{height}x{width}": inputs(odd, (height, width)) for height, width in SIZES}
    np.savez(tmp_path / "inputs.npz", **sizes)
    environment = {**os.environ, "LD_PRELOAD": str(unit), "CMUNEXT_CACHE": str(tmp_path / "tiles")}
    command = [sys.executable, "-c", BY_TILES, odd, tmp_path / "inputs.npz", found]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = np.load(found)
    by_vectors, exactly = open_weights(odd, "native", precision="bfloat16"), open_weights(odd, "native")
    for name, batch in sizes.items():
        vectors, exact = by_vectors(batch), exactly(batch)
        for threads in (1, 2):
            tiles = answers[f"{name} by {threads}"]
            assert np.abs(tiles - vectors).mean() < 0.02 * np.abs(vectors).mean()
            assert np.abs(tiles - exact).mean() < 1.2 * np.abs(vectors - exact).mean()  # as far from float32, and no farther


@on_x86
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the system for tiles as Linux wants it")
@pytest.mark.parametrize("unit", ["vectors", "tiles"])
def test_bfloat16_on_any_processor(odd: Path, unit: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for AVX-512 and for the matrix unit, its instructions in plain C++ (avx512_in_cpp): the same sums, at any speed."""
    header = Path(__file__).with_name("avx512_in_cpp")
    macros = ["AVX512F", "AVX512DQ", "AVX512BF16", *(["AMX_TILE", "AMX_BF16"] if unit == "tiles" else [])]
    flags = (flag.replace("native", "haswell") for flag in library.FLAGS)
    monkeypatch.setattr(library, "FLAGS", (*flags, f"-I{header}", *(f"-D__{macro}__" for macro in macros)))
    assert library.load_library().cmunext_bfloat16() == (2 if unit == "tiles" else 1)
    for size in SIZES:
        check_equal(odd, size)
        batch = inputs(odd, size)
        exact = open_weights(odd, "native", threads=1)(batch)
        one, two = (open_weights(odd, "native", precision="bfloat16", threads=threads)(batch) for threads in (1, 2))
        np.testing.assert_array_equal(one, two)
        assert 1e-4 < np.abs(one - exact).mean() / np.abs(exact).mean() < 0.2  # random weights, through some thirty layers
    path = bundled("cmunext-s-busi")
    found, expected = (
        open_weights(path, "native", precision=each)(inputs(path, (256, 256))) > 0 for each in ("bfloat16", "float32")
    )
    assert (found & expected).sum() / (found | expected).sum() > 0.998


def test_a_library_that_computes_wrongly_is_not_kept(
    odd: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "engine"
    wrong.mkdir()
    for source in library.SOURCES:
        (wrong / source.name).write_text(source.read_text().replace("1 / 16.f", "1 / 15.f"))
    monkeypatch.setattr(library, "SOURCES", tuple(wrong / source.name for source in library.SOURCES))
    with pytest.raises(
        InputError, match=r"cannot build the native backend for this machine \(error: in float32 the logits differ by"
    ):
        open_weights(odd, "native")
    assert list(empty_cache.iterdir()) == []


def test_a_library_that_crashes_is_built_without_the_matrix_unit(
    odd: Path, empty_cache: Path, tmp_path: Path, monkeypatch
) -> None:
    crashing = tmp_path / "g++"
    (real,) = compiled.compiler() or [""]
    crashing.write_text(f'#!/bin/sh\ncase "$*" in *-mno-amx-tile*) exec {real} "$@" ;; *) exec {real} "$@" -DCRASH ;; esac\n')
    crashing.chmod(0o755)
    monkeypatch.setenv("CXX", str(crashing))
    source = tmp_path / "engine"
    source.mkdir()
    for each in library.SOURCES:
        text = each.read_text()
        if each.name == "engine.cpp":
            text += "\n#ifdef CRASH\n__attribute__((constructor)) static void crash() { __builtin_trap(); }\n#endif\n"
        (source / each.name).write_text(text)
    monkeypatch.setattr(library, "SOURCES", tuple(source / each.name for each in library.SOURCES))
    check_equal(odd, (64, 64))


def test_bfloat16_rounds_and_agrees(odd: Path) -> None:
    if not library.load_library().cmunext_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16")
    for path in (odd, bundled("cmunext-s-busi")):
        seen = open_weights(path, "onnxruntime").metadata.preprocessing
        batch = inputs(path, (seen.height, seen.width), 4)
        expected = open_weights(path, "native")(batch)
        lower = open_weights(path, "native", precision="bfloat16")
        assert lower.precision == "bfloat16"
        error = np.abs(lower(batch) - expected).max() / np.abs(expected).max()
        assert 1e-4 < error < 0.3  # 8 bits of mantissa, through some thirty layers
        both, either = ((lower(batch) > 0) & (expected > 0)).sum(), ((lower(batch) > 0) | (expected > 0)).sum()
        assert both / either > (0.85 if path == odd else 0.998)  # random logits lie close to 0


def test_threads_and_batches_change_nothing(odd: Path) -> None:
    alone = open_weights(odd, "native", threads=1)
    for size in SIZES:
        batch = inputs(odd, size, 3)
        expected = np.concatenate([alone(image[None]) for image in batch])
        np.testing.assert_array_equal(alone(batch), expected)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(open_weights(odd, "native", threads=threads)(batch), expected)


def test_a_size_or_channels_that_do_not_fit(odd: Path) -> None:
    backend = open_weights(odd, "native")
    with pytest.raises(InputError, match=r"input of 1 x 72 x 64 does not fit: .* must divide by 16"):
        backend(np.zeros((1, 1, 72, 64), np.float32))
    with pytest.raises(InputError, match="it must have 1 channels"):
        backend(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(InputError, match="input of 1 x 0 x 64 does not fit"):
        backend(np.zeros((1, 1, 0, 64), np.float32))


def test_what_it_has_not(odd: Path) -> None:
    with pytest.raises(UsageError, match="streams is 2, and native has one"):
        open_weights(odd, "native", streams=2)
    with pytest.raises(UsageError, match="device is 'cuda', and native runs on the cpu"):
        open_weights(odd, "native", device="cuda")


def change(path: Path, target: Path, edit) -> Path:
    model = onnx.load(path)
    edit(model)
    kept = [each for each in model.metadata_props if each.key != "sha256"]  # the seal of the file that it was
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, target)
    return target


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == kind)


def sigmoid_for_relu(model: onnx.ModelProto) -> None:
    node(model, "Relu").op_type = "Sigmoid"


def fast_gelu(model: onnx.ModelProto) -> None:
    del node(model, "Gelu").attribute[:]
    node(model, "Gelu").attribute.append(onnx.helper.make_attribute("approximate", "tanh"))


def corners_aligned(model: onnx.ModelProto) -> None:
    mode = next(each for each in node(model, "Resize").attribute if each.name == "coordinate_transformation_mode")
    mode.s = b"align_corners"


def strided(model: onnx.ModelProto) -> None:
    next(each for each in node(model, "Conv").attribute if each.name == "strides").ints[:] = [2, 2]


def swapped(model: onnx.ModelProto) -> None:
    node(model, "Concat").input.reverse()


def not_a_number(model: onnx.ModelProto) -> None:
    bias = next(each for each in model.graph.initializer if each.name == node(model, "Conv").input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(bias), np.nan), bias.name))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (sigmoid_for_relu, "an operator Sigmoid"),
        (fast_gelu, "a GELU that is not the exact one"),
        (corners_aligned, "an operator Resize"),
        (strided, "a convolution that is not square, odd and padded"),
        (not_a_number, "weights that are not finite"),
    ],
)
def test_a_network_that_it_cannot_run_is_refused(odd: Path, tmp_path: Path, edit, problem: str) -> None:
    path = change(odd, tmp_path / "changed.onnx", edit)
    with pytest.raises(InputError, match=f"changed.onnx: the native backend runs CMUNeXt, and this network has {problem}"):
        open_weights(path, "native")


def without_groups(model: onnx.ModelProto) -> None:
    next(each for each in node(model, "Conv").attribute if each.name == "group").i = 0


def without_output(model: onnx.ModelProto) -> None:
    del node(model, "Conv").output[:]


def of_no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def cut(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-2]


@pytest.mark.parametrize("edit", [without_groups, without_output, of_no_type, cut])
@pytest.mark.parametrize("backend", ["native", "onnxruntime", "openvino"])
def test_a_damaged_network_is_refused_in_a_sentence(odd: Path, tmp_path: Path, edit, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = change(odd, tmp_path / "changed.onnx", edit)
    with pytest.raises(InputError) as raised:  # in opening it, or when it runs
        open_weights(path, backend)(np.zeros((1, 3, 64, 64), np.float32))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_size_that_the_others_do_not_run_is_a_sentence(odd: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(InputError, match="the network cannot be run on an input of 3 x 60 x 60 "):
        open_weights(odd, backend)(np.zeros((1, 3, 60, 60), np.float32))


def test_the_order_of_what_is_side_by_side_counts(odd: Path, tmp_path: Path) -> None:
    path = change(odd, tmp_path / "swapped.onnx", swapped)
    check_equal(path, (64, 64))
    assert not np.allclose(
        open_weights(path, "native")(inputs(path, (64, 64))), open_weights(odd, "native")(inputs(odd, (64, 64)))
    )


def test_files_that_are_not_what_they_say(odd: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model at all")
    with pytest.raises(InputError, match=r"bad\.onnx: .*ONNX model"):
        open_weights(bad, "native")
    bad.write_bytes(odd.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"bad\.onnx"):
        open_weights(bad, "native")
    with pytest.raises(InputError, match="it does not describe itself"):
        open_weights(write_network(bad, properties={}), "native")
    with pytest.raises(UsageError, match="computes in int8, which native does not"):
        open_weights(write_network(bad, properties={KEY: describe().to_json(), PRECISION: "int8"}), "native")


def test_without_a_compiler(odd: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    assert not library.available()
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler; install g\+\+"):
        open_weights(odd, "native")
    assert not empty_cache.exists()


def test_a_compiler_that_fails_leaves_nothing(
    odd: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'In file included' >&2; echo 'vectors.h:1: error: no such thing' >&2; exit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(InputError, match=r"cannot build the native backend for this machine .*error: no such thing"):
        open_weights(odd, "native")
    assert list(empty_cache.iterdir()) == []


def test_a_damaged_library_is_built_again_and_that_is_said(
    odd: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library.library_path().parent.mkdir(parents=True)
    library.library_path().write_text("no library")
    with monkeypatch.context() as patched:
        patched.setattr(compiled, "compiler", lambda: None)
        with pytest.raises(UsageError, match="needs a C"):
            open_weights(odd, "native")
    check_equal(odd, (64, 64))
    (line,) = caplog.messages
    assert line.startswith("compiling the native backend with ")
    assert line.endswith(f"it is kept as {library.library_path()}")
    assert library.is_built()
    damaged = empty_cache / "damaged"
    damaged.write_bytes(library.library_path().read_bytes()[:-1])
    damaged.replace(library.library_path())  # beside the file that this process runs, never in it
    assert not library.is_built()
    other = empty_cache / "other.so"  # never the file that this process runs
    other.write_text("no library")
    with pytest.raises(InputError, match=r"other.so: this library cannot be loaded .* delete it, and it is built again"):
        library.open_library(other)


def test_the_compiler_of_one_s_choice(odd: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("no-such-compiler", "g++ 'flag"):
        monkeypatch.setenv("CXX", missing)
        assert not library.available()
        with pytest.raises(UsageError, match=f"CXX is {re.escape(repr(missing))}, which is not found"):
            open_weights(odd, "native")
    monkeypatch.delenv("CXX")
    (real,) = compiled.compiler() or [""]
    monkeypatch.setenv("CXX", " ")
    assert compiled.compiler() == [real]
    monkeypatch.setenv("CXX", f"env {real}")
    assert compiled.compiler() is not None
    check_equal(odd, (64, 64))


def test_modules_in_the_current_folder_are_left_alone(
    odd: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMUNEXT_CACHE", "cache")
    check_equal(odd, (64, 64))


def small(path: Path, nodes: list, classes: int = 8, **constants: np.ndarray) -> Path:
    """A network of hand-written nodes from `image`, 3 x 32 x 32, to `logits`, with random weights of the given shapes."""
    generator = np.random.default_rng(0)
    made = {
        name: generator.normal(size=value).astype(np.float32) if isinstance(value, tuple) else value
        for name, value in constants.items()
    }
    metadata = describe(Preprocessing(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3), tuple(f"class {n}" for n in range(classes)))
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("image", float32, ["batch", 3, None, None])],
        [onnx.helper.make_tensor_value_info("logits", float32, ["batch", None, None, None])],
        [onnx.numpy_helper.from_array(value, name) for name, value in made.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    onnx.save(model, path)
    return path


def conv(source: str, result: str, weights: str, kernel: int, group: int = 1, **attributes) -> onnx.NodeProto:
    padding = {"pads": [kernel // 2] * 4} | attributes
    return onnx.helper.make_node(
        "Conv", [source, weights, *(["bias"] if weights == "biased" else [])], [result], group=group, **padding
    )


def pool(source: str, result: str, **attributes) -> onnx.NodeProto:
    return onnx.helper.make_node("MaxPool", [source], [result], kernel_shape=[2, 2], **attributes)


def up(source: str, result: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Resize", [source, "", "scales"], [result], mode="linear")


SCALES = np.array([1, 1, 2, 2], np.float32)
STEM = conv("image", "a", "stem", 3)
WEIGHTS = {"stem": (8, 3, 3, 3), "head": (8, 8, 1, 1)}
NORM = {
    name: np.abs(np.random.default_rng(1).normal(size=8)).astype(np.float32) for name in ("gain", "shift", "mean", "variance")
}

MISFITS = {
    "more classes than it says": ([conv("image", "logits", "w", 1)], {"w": (100, 3, 1, 1)}),
    "depthwise at the end": ([STEM, conv("a", "logits", "w", 3, 8)], {"w": (8, 1, 3, 3)}),
    "depthwise of two maps": (
        [
            STEM,
            onnx.helper.make_node("Concat", ["a", "a"], ["b"], axis=1),
            conv("b", "c", "w", 3, 16),
            conv("c", "logits", "v", 1),
        ],
        {"w": (16, 1, 3, 3), "v": (8, 16, 1, 1)},
    ),
    "larger than the image": (
        [STEM, up("a", "b"), conv("b", "c", "w", 3), conv("c", "logits", "head", 1)],
        {"w": (8, 8, 3, 3), "scales": SCALES},
    ),
    "logits of half the size": ([STEM, pool("a", "b", strides=[2, 2]), conv("b", "logits", "head", 1)], {}),
    "groups of four": (
        [
            STEM,
            onnx.helper.make_node("Concat", ["a", "a"], ["b"], axis=1),
            conv("b", "c", "w", 3, 2),
            conv("c", "logits", "head", 1),
        ],
        {"w": (8, 8, 3, 3)},
    ),
    "pooling at every pixel": (
        [STEM, pool("a", "b"), up("b", "c"), conv("c", "d", "w", 3), conv("d", "logits", "head", 1)],
        {"w": (8, 8, 3, 3), "scales": SCALES},
    ),
    "no padding": ([conv("image", "a", "stem", 3, pads=[0] * 4), conv("a", "logits", "head", 1)], {}),
    "padding by itself": (
        [onnx.helper.make_node("Conv", ["image", "stem"], ["a"], auto_pad="VALID"), conv("a", "logits", "head", 1)],
        {},
    ),
    "statistics of the batch": (
        [
            STEM,
            onnx.helper.make_node("BatchNormalization", ["a", *NORM], ["b"], training_mode=1),
            conv("b", "logits", "head", 1),
        ],
        NORM,
    ),
    "too many inputs": ([STEM, conv("a", "logits", "w", 1)], {"w": (8, 512, 1, 1)}),
    "too short a bias": (
        [conv("image", "a", "biased", 3), conv("a", "logits", "head", 1)],
        {"biased": (8, 3, 3, 3), "bias": (1,)},
    ),
    "weights that are computed": (
        [
            STEM,
            onnx.helper.make_node("Neg", ["gain"], ["other"]),
            onnx.helper.make_node("BatchNormalization", ["a", "other", "shift", "mean", "variance"], ["b"]),
            conv("b", "logits", "head", 1),
        ],
        NORM,
    ),
    "a number": (
        [onnx.helper.make_node("Constant", [], ["number"], value_float=1.0), STEM, conv("a", "logits", "head", 1)],
        {},
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    nodes, constants = MISFITS[name]
    path = small(tmp_path / "small.onnx", nodes, **{**WEIGHTS, **constants})
    with pytest.raises(InputError, match=r"small\.onnx: the "):
        open_weights(path, "native")


def test_a_small_network_that_fits(tmp_path: Path) -> None:
    norm = onnx.helper.make_node("BatchNormalization", ["r", *NORM], ["b"])
    relu = onnx.helper.make_node("Relu", ["a"], ["r"])
    nodes = [
        STEM,
        relu,
        norm,
        pool("b", "c", strides=[2, 2]),
        up("c", "d"),
        conv("d", "e", "w", 3),
        conv("e", "logits", "head", 1),
    ]
    path = small(tmp_path / "small.onnx", nodes, **WEIGHTS, **NORM, w=(8, 8, 3, 3), scales=SCALES)
    for size in ((32, 32), (2, 2), (6, 34)):
        check_equal(path, size)


def test_copies_and_forks_free_nothing_twice(odd: Path) -> None:
    backend = open_weights(odd, "native", threads=3)
    batch = inputs(odd, (64, 64))
    expected = backend(batch)
    twin = replace(backend, name="twin")
    child = os.fork()
    if child == 0:
        del backend, twin
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    del backend
    np.testing.assert_array_equal(twin(batch), expected)


def test_auto_measures_it_once_it_is_built(odd: Path) -> None:
    open_weights(odd, "native")
    found = choice.measure(odd, 1)
    assert "native float32" in found["median_ms"]
    bfloat16 = "native bfloat16" in found["median_ms"]
    assert bfloat16 == bool(library.load_library().cmunext_bfloat16())
    assert bfloat16 == ("native bfloat16" in found["agreement"])


def test_a_network_that_it_cannot_run_is_left_to_the_others(odd: Path, tmp_path: Path) -> None:
    path = change(odd, tmp_path / "changed.onnx", sigmoid_for_relu)
    assert "native float32" not in choice.measure(path, 1)["median_ms"]
    assert open_weights(path, measure=True).name != "native"


def test_it_is_freed(odd: Path) -> None:
    backend = native.load(odd)
    freed = []
    original = backend._network._library.cmunext_close

    class Watched:
        def cmunext_close(self, address: int) -> None:
            freed.append(address)
            original(address)

    address = backend._network._address
    backend._network._library = Watched()
    del backend
    gc.collect()
    assert freed == [address]
