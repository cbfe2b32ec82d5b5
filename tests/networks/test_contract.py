"""What every network of the registry must do, swept over all of them: on small grey images, with three classes.

Wide networks are made narrow where their arguments allow it, for the tests' speed; what widths change, the goldens see. Their
ONNX files are checked at full width in the slow tests.
"""

import copy
import gc
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from fill import fill_by_shape
from torch import Tensor, nn

from cmunext.errors import UsageError
from cmunext.networks import create, names

CLASSES = 3
SIZE = {"medt": 128}  # the least that it takes; the others run at 64
NARROW = (8, 16, 24, 32, 40)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "unet": {"widths": NARROW},
    "attention-unet": {"widths": NARROW},
    "unet3+": {"widths": NARROW, "branch_channels": 8},
    "cmunet": {"widths": NARROW},
    "medt": {"image_size": 128},
    "transunet": {"image_size": 64},
    "swin-unet": {"image_size": 64, "window": 2},
}
# Parameters without influence on the output: never called, or a bias that softmax removes.
INERT = {
    "medt": ("unused.*", "*.unused.*", "*.similarity_norm.bias"),
    "transunet": ("transformer.*.attention.key.bias",),
}


def inputs(name: str, batch: int) -> Tensor:
    size = SIZE.get(name, 64)
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(batch))


def build(name: str, **arguments: Any) -> nn.Module:
    """A network whose weights follow from their shapes, at a gain that lets every depth be seen and float32 stay accurate.

    Fresh from their initialisation the deep ones give a nearly constant output, which would agree with anything.
    """
    network = create(name, in_channels=1, num_classes=CLASSES, **arguments)
    return fill_by_shape(network, gain=0.5 if name.startswith("mobile-uvit") else 0.7).eval()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4, and within a thousandth of the logits' standard deviation."""
    tolerance = min(1e-4, 1e-3 * expected.std().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> Iterator[nn.Module]:
    """Built once for all tests of a name, which leave it as they find it."""
    yield build(name, **ARGUMENTS.get(name, {}))
    gc.collect()


def test_logits_at_the_inputs_size_for_any_batch(name: str, network: nn.Module) -> None:
    with torch.no_grad():
        pair = network(inputs(name, 2))
        single = network(inputs(name, 2)[:1])
    assert pair.shape == (2, CLASSES, *inputs(name, 2).shape[-2:])
    assert pair.std() > 1e-3  # the deep layers speak
    assert_same(single, pair[:1])  # an image's result does not depend on its neighbours


def test_training_moves_statistics_and_evaluation_does_not(name: str, network: nn.Module) -> None:
    copied = copy.deepcopy(network)
    x = inputs(name, 2)
    with torch.no_grad():
        before = copied(x)
        assert torch.equal(copied(x), before)
        trained = copied.train()(x + 1)
        after = copied.eval()(x)
    assert trained.shape == before.shape
    assert torch.isfinite(trained).all()
    has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.equal(after, before) != has_statistics


def test_every_parameter_gets_a_gradient(name: str, network: nn.Module) -> None:
    copied = copy.deepcopy(network).double()
    y = copied(inputs(name, 1).double())
    (y * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))).sum().backward()
    without = set()
    for key, parameter in copied.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or parameter.grad.abs().max() < 1e-11):
            without.add(key)
    expected = {key for key, _ in copied.named_parameters() if any(fnmatch(key, pattern) for pattern in INERT.get(name, ()))}
    assert without == expected


def test_only_medts_gates_are_frozen(name: str, network: nn.Module) -> None:
    frozen = [key for key, parameter in network.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == (24 if name == "medt" else 0)
    assert all(key.endswith("_gate") for key in frozen)


def test_other_sizes_are_refused_with_the_nearest_that_fits(name: str, network: nn.Module) -> None:
    size = SIZE.get(name, 64)
    with pytest.raises(ValueError, match=re.escape(f"nearest size that works is {size} x {size}")) as caught:
        network(torch.zeros(1, 1, size + 3, size))
    assert f"{size + 3} x {size}" in str(caught.value)


def test_state_survives_a_file(name: str, network: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = create(name, in_channels=1, num_classes=CLASSES, **ARGUMENTS.get(name, {})).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    x = inputs(name, 1)
    with torch.no_grad():
        assert torch.equal(other(x), network(x))


def test_channels_last_is_the_same(name: str, network: nn.Module) -> None:
    x = inputs(name, 2)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_same(other(x.contiguous(memory_format=torch.channels_last)), network(x))


def test_bfloat16_is_close(name: str, network: nn.Module) -> None:
    x = inputs(name, 1)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
    assert torch.isfinite(half).all()
    assert (half.float() - full).std() < 0.05 * full.std()


def check_exports(name: str, network: nn.Module, folder: Path) -> None:
    """`torch.export` for any batch, and for any size where the network is not built for one; then ONNX from the same graph.

    Both must give PyTorch's logits, for another batch and size than they were exported with.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    divisor = network.size_divisor
    sizes = {2: divisor * torch.export.Dim("rows"), 3: divisor * torch.export.Dim("columns")} if divisor else {}
    program = torch.export.export(network, (inputs(name, 2),), dynamic_shapes=({0: torch.export.Dim("batch"), **sizes},))

    x = inputs(name, 3)
    if divisor:
        x = torch.cat((x, x[..., :32]), dim=3)
    with torch.no_grad():
        expected = network(x)
        assert_same(program.module()(x), expected)

    torch.onnx.export(program, dynamo=True, input_names=["image"], verbose=False).save(folder / "network.onnx")
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"image": x.numpy()})
    assert_same(torch.from_numpy(actual), expected)


# One of every architecture; the other sizes of the same and the two that cannot be made narrow are slow.
EXPORTED = ["cmunext-s", "unet", "attention-unet", "unet3+", "cmunet", "medt", "swin-unet", "unext", "convunext", "mobile-uvit"]


@pytest.mark.parametrize("exported", EXPORTED)
def test_export_and_onnx_are_the_same_function(exported: str, tmp_path: Path) -> None:
    check_exports(exported, build(exported, **ARGUMENTS.get(exported, {})), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("exported", [name for name in names() if name not in EXPORTED or "widths" in ARGUMENTS.get(name, {})])
def test_export_and_onnx_of_the_rest_at_full_width(exported: str, tmp_path: Path) -> None:
    check_exports(exported, build(exported, image_size=64) if exported == "transunet" else build(exported), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("exported", "size"), [("medt", 256), ("swin-unet", 224), ("transunet", 256)])
def test_export_and_onnx_at_the_size_of_the_tables(
    exported: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZE, exported, size)
    check_exports(exported, build(exported), tmp_path)


@pytest.mark.parametrize(
    ("size", "network_name", "nearest"),
    [
        ((40, 40), "convunext", "64 x 64"),
        ((200, 300), "unext", "192 x 288"),
        ((8, 8), "cmunext-s", "16 x 16"),
        ((0, 16), "cmunext-s", "16 x 16"),
    ],
)
def test_nearest_size_respects_the_least(size: tuple[int, int], network_name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"nearest size that works is {nearest}"):
        create(network_name)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("network_name", "arguments", "nearest"),
    [
        ("transunet", {"image_size": 250}, "256 x 256"),
        ("medt", {"image_size": 64}, "128 x 128"),
        ("medt", {"image_size": 200, "cover_image": True}, "256 x 256"),
        ("swin-unet", {"image_size": 256}, "224 x 224"),
        ("swin-unet", {"image_size": (256, 500), "window": 8}, "256 x 512"),
    ],
)
def test_image_size_that_does_not_fit_is_refused(network_name: str, arguments: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UsageError, match=f"nearest size that works is {nearest}"):
        create(network_name, **arguments)


@pytest.mark.parametrize("network_name", ["transunet", "medt", "swin-unet"])
def test_image_size_may_be_a_rectangle(network_name: str) -> None:
    arguments = {
        "transunet": {"image_size": (64, 96)},
        "medt": {"image_size": (128, 160)},
        "swin-unet": {"image_size": (64, 128), "window": 2},
    }
    network = create(network_name, **arguments[network_name]).eval()
    height, width = arguments[network_name]["image_size"]
    with torch.no_grad():
        assert network(torch.zeros(1, 3, height, width)).shape == (1, 1, height, width)
        with pytest.raises(ValueError, match=f"{width} x {height} pixels does not fit"):
            network(torch.zeros(1, 3, width, height))


def test_unknown_arguments_and_names_are_refused() -> None:
    with pytest.raises(UsageError, match="swin-unet"):
        create("swinunet")
    with pytest.raises(UsageError, match="dropout"):
        create("unet", dropout=0.5)


def test_a_network_of_ones_own_is_built_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n\ndef tiny(in_channels, num_classes):\n    return nn.Conv2d(in_channels, num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert create("own_network:tiny", in_channels=2, num_classes=5)(torch.zeros(1, 2, 4, 4)).shape == (1, 5, 4, 4)
    for name in ("own_network:huge", ":tiny", ".own_network:tiny"):
        with pytest.raises(UsageError, match="cannot be imported"):
            create(name)
    with pytest.raises(UsageError, match="which builds nothing"):
        create("own_network:nn")


def test_importing_the_networks_builds_nothing() -> None:
    """In a process of its own: no module is made, and nothing beyond torch and numpy is imported."""
    script = (
        "import sys, torch\n"
        "from torch import nn\n"
        "made = []\n"
        "original = nn.Module.__init__\n"
        "def counting(self, *args, **kwargs):\n"
        "    made.append(type(self))\n"
        "    original(self, *args, **kwargs)\n"
        "nn.Module.__init__ = counting\n"
        "before = set(sys.modules)\n"
        "import cmunext.networks\n"
        "assert not made, made\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new <= {'cmunext', 'numpy'}, new\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
