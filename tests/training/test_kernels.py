"""The kernels for training on a CPU give what PyTorch gives in float64, whatever the map, the format, the threads and the processor."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests.datasets import write_dataset
from tests.training_here import train_here
from torch import Tensor, nn

from cmunext import compiled, losses, networks
from cmunext.networks.blocks import bottleneck, convolved_upsampling, norm_of_gelu, relu_of_norm
from cmunext.training import host
from cmunext.training.host import FastLayers
from cmunext.training.kernels import VERSION, choice, functions, library, proof
from cmunext.training.recipe import DEFAULT, with_settings

if not sys.platform.startswith("linux"):
    pytest.skip("the kernels are built on Linux", allow_module_level=True)
if compiled.compiler() is None:
    pytest.skip("there is no C++ compiler", allow_module_level=True)
SIZES = ((1, 2), (3, 8), (5, 7), (33, 48))  # the last takes several pieces of every slice
LARGEST = {torch.float32: 3e-5, torch.bfloat16: 1e-2}  # of the largest number; of a few pixels a norm makes much of rounding


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The library is built once for all tests, apart from the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CMUNEXT_CACHE", str(tmp_path_factory.mktemp("kernels")))
        library._load.cache_clear()
        yield
    library._load.cache_clear()


@pytest.fixture
def kernels():
    found = library.load(pytest.fail)
    assert found
    return found


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.expand, self.norm, self.project = nn.Conv2d(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return bottleneck(x, self.expand, self.norm, self.project)


class Upsampling(nn.Module):
    def __init__(self, inputs: int, outputs: int, **kind):
        super().__init__()
        self.upsample, self.convolution = nn.Upsample(scale_factor=2, **kind), nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return convolved_upsampling(x, self.upsample, self.convolution)


class Convolution(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, **kind):
        super().__init__(inputs, outputs, **{"kernel_size": 3, "padding": 1} | kind)


class Normed(nn.Module):
    def __init__(self, function, channels: int):
        super().__init__()
        self.function, self.norm = function, nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.norm)


def maps(channels: int, size: tuple[int, int], outputs: int, format: torch.dtype, scale: int = 1) -> tuple[Tensor, Tensor]:
    """An input of uneven mean and spread, and a gradient of the output, which is larger by `scale`."""
    generator = torch.Generator().manual_seed(channels + size[0])
    x = 2 * torch.randn(2, channels, *size, generator=generator) + torch.linspace(-2, 3, channels)[:, None, None]
    gradient = torch.randn(2, outputs, scale * size[0], scale * size[1], generator=generator)
    x, gradient = (tensor.to(format).contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    return x, gradient


def uneven(layers: nn.Module) -> nn.Module:
    """The same, with norms whose weights are not all alike."""
    torch.manual_seed(0)
    for norm in layers.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return layers


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def check(layers: nn.Module, x: Tensor, gradient: Tensor, kernels, *, alone: tuple[str, ...] | None = None) -> None:
    """What float64 gives but for rounding, by one thread and by three; the same bits in all that PyTorch computes no part of (`alone`)."""
    expected = proof.results(deepcopy(layers).double(), x.double(), gradient.double())
    found = []
    for threads in (1, 3):
        with FastLayers(kernels), thread_count(threads):
            found.append(proof.results(deepcopy(layers), x, gradient))
    for name, right in expected.items():
        assert torch.equal(found[0][name], found[1][name]) or not (alone is None or name in alone), name
        scale = max(float(right.abs().max()), 1e-2)
        for some in found:
            difference = float((some[name].double() - right).abs().max())
            assert difference <= LARGEST[x.dtype] * scale, f"{name} differs by {difference} of {scale}"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called, by name."""
    names: list[str] = []
    for function in (
        functions.TrainedNorm,
        functions.TrainedBottleneck,
        functions.UpsampledSum,
        functions.TrainedConvolution,
        functions.TrainedDepthwise,
    ):

        def apply(*arguments, function=function, real=function.apply):
            names.append(function.__name__)
            return real(*arguments)

        monkeypatch.setattr(function, "apply", apply)
    return names


@pytest.mark.parametrize("format", LARGEST)
@pytest.mark.parametrize("channels", [1, 3, 8, 12, 16, 40, 136])
@pytest.mark.parametrize("function", [norm_of_gelu, relu_of_norm])
def test_norms(function, channels: int, format: torch.dtype, kernels, taken: list[str]) -> None:
    sizes = [size for size in SIZES if 2 * size[0] * size[1] % kernels.cmunext_norm_pixels(channels) == 0]
    for size in sizes:
        layers, (x, gradient) = uneven(Normed(function, channels)), maps(channels, size, channels, format)
        if function is relu_of_norm:  # where it is 0 but for rounding, rounding decides on the gradient
            gradient[deepcopy(layers.norm).double()(x.double()).abs() < 1e-3] = 0
        check(layers, x, gradient, kernels)
    assert len(taken) == 2 * len(sizes) > 0


@pytest.mark.parametrize("format", LARGEST)
@pytest.mark.parametrize("function", [norm_of_gelu, relu_of_norm])
@torch.no_grad()
def test_norms_that_are_fixed(function, format: torch.dtype, kernels) -> None:
    layers, (x, _) = uneven(Normed(function, 24)).eval(), maps(24, (33, 48), 24, format)
    layers.norm.running_mean.normal_()
    layers.norm.running_var.uniform_(0.5, 2)
    before, right = deepcopy(layers.state_dict()), deepcopy(layers).double()(x.double())
    for threads in (1, 3):
        with FastLayers(kernels), thread_count(threads):
            found = layers(x)
        assert found.dtype == format
        assert float((found.double() - right).abs().max()) <= LARGEST[format] * float(right.abs().max())
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())


@torch.no_grad()
def test_a_network_that_is_not_trained(kernels, taken: list[str], monkeypatch) -> None:
    """What a teacher says is what it says by PyTorch's layers."""
    torch.manual_seed(0)
    network, fixed = networks.create("cmunext-s").to(memory_format=torch.channels_last), list[nn.Module]()
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    network(images)  # moves the statistics from where they begin
    network.eval()
    expected = network(images)
    monkeypatch.setattr(host, "fixed_norm", lambda x, norm, *rest: fixed.append(norm) or functions.fixed_norm(x, norm, *rest))
    with FastLayers(kernels):
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert set(fixed) == {module for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    assert taken == ["UpsampledSum"] * 4


@pytest.mark.parametrize("format", LARGEST)
@pytest.mark.parametrize(("mean", "spread"), [(-8, 1), (-5, 0.7), (-3, 1), (6, 1)])
def test_channels_that_are_switched_off(mean: float, spread: float, format: torch.dtype, kernels) -> None:
    """What GELU leaves of them is next to nothing, of which the norm makes up to 316 times as much."""
    x, gradient = maps(8, (64, 64), 8, format)
    x = (spread * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) + mean).to(x)
    x, layers = x.contiguous(memory_format=torch.channels_last), uneven(Normed(norm_of_gelu, 8))
    exact = proof.results(deepcopy(layers).double(), x.double(), gradient.double())
    plain = proof.results(deepcopy(layers), x, gradient)
    with FastLayers(kernels):
        fast = proof.results(deepcopy(layers), x, gradient)
    for name, right in exact.items():
        wrong, allowed = (float((some[name].double() - right).abs().max()) for some in (fast, plain))
        assert wrong <= 2 * allowed + 1e-3 * max(1, float(right.abs().max())), f"{name}: {wrong} and PyTorch {allowed}"


@pytest.mark.parametrize("widths", [(8, 8, 8), (8, 32, 16), (16, 24, 8), (40, 16, 48), (16, 128, 64)])
def test_bottlenecks(widths: tuple[int, int, int], kernels, taken: list[str]) -> None:
    for size in SIZES[1:]:
        check(uneven(Bottleneck(*widths)), *maps(widths[0], size, widths[-1], torch.float32), kernels)
    assert taken == ["TrainedBottleneck"] * 6


@pytest.mark.parametrize("format", LARGEST)
@pytest.mark.parametrize("widths", [(3, 8), (16, 8), (24, 40), (8, 16)])
def test_convolutions_of_upsampled_maps(widths: tuple[int, int], format: torch.dtype, kernels, taken: list[str]) -> None:
    sizes = ((1, 1), (1, 2), (3, 1), *SIZES)
    for size in sizes:
        maps_of_size = maps(widths[0], size, widths[1], format, scale=2)
        check(Upsampling(*widths, mode="bilinear", align_corners=False), *maps_of_size, kernels, alone=())
    assert taken == ["UpsampledSum"] * 2 * len(sizes)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("widths", [(8, 8), (8, 24), (24, 8), (16, 32)])
def test_convolutions(widths: tuple[int, int], groups: int, kernels, taken: list[str], monkeypatch) -> None:
    monkeypatch.setattr(choice, "NARROWEST_MAP", 1)
    channels = [groups * width for width in widths]
    sizes = ((1, 1), *SIZES, (3, 150))  # rows that are taken together, and one that is too long for that
    for size in sizes:
        x, gradient = maps(channels[0], size, channels[1], torch.float32)
        layers = Convolution(*channels, groups=groups, bias=size != (5, 7))
        check(layers, x, gradient, kernels, alone=("the gradient of weight", "the gradient of bias"))
    assert taken == ["TrainedConvolution"] * 2 * len(sizes)


@pytest.mark.parametrize("format", LARGEST)
@pytest.mark.parametrize("kernel", choice.DEPTHWISE)
@pytest.mark.parametrize("channels", [8, 16, 40])
def test_depthwise_convolutions(channels: int, kernel: int, format: torch.dtype, kernels, taken: list[str]) -> None:
    sizes = ((1, 1), *SIZES)
    for size in sizes:
        layers = Convolution(channels, channels, kernel_size=kernel, padding=kernel // 2, groups=channels, bias=size != (5, 7))
        alone = ("the gradient of weight", "the gradient of bias")
        check(layers, *maps(channels, size, channels, format), kernels, alone=alone)
    assert taken == ["TrainedDepthwise"] * 2 * len(sizes)


def test_what_the_kernels_do_not_take_goes_to_pytorch(kernels, taken: list[str]) -> None:
    x, gradient = maps(8, (4, 6), 8, torch.float32)
    frozen = Normed(norm_of_gelu, 8)
    frozen.norm.eval()
    unmoved = Normed(relu_of_norm, 8)
    unmoved.norm.momentum = None
    grouped = Bottleneck(8, 16, 8)
    grouped.expand = nn.Conv2d(8, 16, 1, groups=2)
    for layers, images in (
        (frozen, x),
        (unmoved, x),
        (grouped, x),
        (Bottleneck(8, 12, 8), x),
        (Bottleneck(8, 256, 8), x),
        (Normed(norm_of_gelu, 8), x.contiguous()),
        (Normed(norm_of_gelu, 8).double(), x.double()),
    ):
        expected = proof.results(deepcopy(layers), images, gradient.to(images.dtype))
        taken.clear()
        with FastLayers(kernels):
            found = proof.results(deepcopy(layers), images, gradient.to(images.dtype))
        assert "TrainedBottleneck" not in taken
        for name, right in expected.items():
            torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-4)
    reflecting = Upsampling(8, 8, mode="bilinear")
    reflecting.convolution = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    for layers in (
        Upsampling(8, 8, mode="nearest"),
        Upsampling(8, 8, mode="bilinear", align_corners=True),
        Upsampling(8, 12, mode="bilinear"),
        reflecting,
    ):
        expected = layers(x)
        taken.clear()
        with FastLayers(kernels):
            torch.testing.assert_close(layers(x), expected)
        assert taken == []
    wide, _ = maps(8, (4, 40), 8, torch.float32)
    frozen_weights = Convolution(8, 8).requires_grad_(False)
    for layers, images in (
        (Convolution(8, 12), wide),
        (Convolution(8, 16, groups=4), wide),
        (Convolution(8, 8, kernel_size=1, padding=0), wide),
        (Convolution(8, 8, padding=2, dilation=2), wide),
        (Convolution(8, 8, stride=2), wide),
        (Convolution(8, 8, padding="same"), wide),
        (Convolution(8, 8, groups=8), wide),
        (Convolution(8, 8, kernel_size=11, padding=5, groups=8), wide),
        (Convolution(8, 8, kernel_size=7, padding=3, groups=4), wide),
        (Convolution(8, 8, kernel_size=7, padding=2, groups=8), wide),
        (Convolution(8, 8, kernel_size=7, padding=6, dilation=2, groups=8), wide),
        (Convolution(8, 8, kernel_size=(7, 5), padding=3, groups=8), wide),
        (Convolution(12, 12, kernel_size=7, padding=3, groups=12), wide[:, :1].expand(-1, 12, -1, -1)),
        (frozen_weights, wide),
        (Convolution(8, 8), x),
        (Convolution(8, 8), wide.contiguous()),
        (Convolution(8, 8).double(), wide.double()),
    ):
        expected = layers(images)
        taken.clear()
        with FastLayers(kernels):
            torch.testing.assert_close(layers(images), expected)
        assert taken == []
    taken.clear()
    with FastLayers(kernels), torch.autocast("cpu", torch.bfloat16):  # of float32 maps PyTorch's convolutions give bfloat16 here
        assert Upsampling(8, 8, mode="bilinear")(x).dtype == Bottleneck(8, 8, 8)(x).dtype == torch.bfloat16
        assert Convolution(8, 8)(wide).dtype == torch.bfloat16
    assert set(taken) <= {"TrainedNorm"}
    with FastLayers(kernels), torch.no_grad():
        taken.clear()
        Normed(norm_of_gelu, 8)(x)
    assert taken == []


@pytest.mark.parametrize("layers", [Normed(norm_of_gelu, 8), Normed(relu_of_norm, 8), Bottleneck(8, 16, 8)])
def test_what_is_not_a_number_stays_so(layers: nn.Module, kernels) -> None:
    for wrong in (float("nan"), float("inf"), -float("inf")):
        for format in LARGEST:
            x, _ = maps(8, (4, 6), 8, format)
            x[1, 2, 3, 4] = wrong
            with FastLayers(kernels), torch.autocast("cpu", torch.bfloat16, enabled=format == torch.bfloat16):
                assert not layers(x).isfinite().all()


def test_a_step_of_the_whole_network(kernels, taken: list[str]) -> None:
    """Logits, gradients and statistics of CMUNeXt-S are as near to float64 as PyTorch's in float32."""
    torch.manual_seed(0)
    network = networks.create("cmunext-s").to(memory_format=torch.channels_last).train()
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand(2, 1, 64, 64) > 0.7).float()
    found = []
    for format, used in ((torch.float64, None), (torch.float32, None), (torch.float32, kernels)):
        trained = deepcopy(network).to(format)
        with FastLayers(used):
            logits = trained(images.to(format))
        losses.BCEDiceLoss()(logits, masks.to(format)).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
        statistics = torch.cat([buffer.flatten() for buffer in trained.buffers()])
        found.append([part.detach().double() for part in (logits, gradients, statistics)])
    assert taken.count("TrainedBottleneck") == 7  # the two deepest are too wide
    assert taken.count("TrainedNorm") == 28 + 2
    assert taken.count("UpsampledSum") == 4
    assert taken.count("TrainedDepthwise") == 3  # those of 7 x 7 and 9 x 9
    assert taken.count("TrainedConvolution") == 4  # on maps of 64 x 64 and 32 x 32, but for the stem
    for exact, plain, fast in zip(*found, strict=True):
        assert float((fast - exact).norm()) < min(2 * float((plain - exact).norm()), 0.01 * float(exact.norm()))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="builds for x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "AVX-512"])
def test_other_processors(processor: str, tmp_path: Path) -> None:
    """Without AVX, with it, and with vectors of 16, whose instructions are in plain C++ here (tests/inference/avx512_in_cpp)."""
    header = Path(__file__).parents[1] / "inference" / "avx512_in_cpp"
    wide = (f"-I{header}", "-D__AVX512F__", "-D__AVX512DQ__")
    target = "haswell" if processor == "AVX-512" else processor
    flags = [flag.replace("native", target).replace("-O3", "-O1") for flag in library.FLAGS]
    path = tmp_path / "other.so"
    command = [
        *(compiled.compiler() or []),
        *flags,
        *(wide if processor == "AVX-512" else ()),
        str(library.SOURCES[0]),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    built = library.open_library(path)
    assert (built.cmunext_norm_pixels(8) == 2) == (processor == "AVX-512")
    assert proof.prove(built) is None


def test_a_library_that_computes_wrongly_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, said = tmp_path / "kernels", list[str]()
    shutil.copytree(library.SOURCES[0].parent, wrong)
    norms = wrong / "norms.h"
    norms.write_text(norms.read_text().replace("of_weight[channel] = float(s * with_y)", "of_weight[channel] = float(with_y)"))
    monkeypatch.setattr(library, "SOURCES", tuple(wrong / source.name for source in library.SOURCES))
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path / "cache"))
    library._load.cache_clear()
    assert library.load(said.append) is None
    library._load.cache_clear()
    (sentence,) = said
    assert "training goes on without its own kernels, slower" in sentence
    assert "the gradient of first.weight differs by" in sentence
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_run_goes_on_by_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler training goes on without the kernels and says so; begun so, a run does not take them later."""
    recipe = with_settings(DEFAULT, ["epochs=2", "size=32", "batch_size=4", "precision=32-true"])  # 8 cases: two batches
    dataset = tmp_path / "data"
    write_dataset(dataset)

    def stop(epoch: int, done: int, *_) -> None:
        if (epoch, done) == (0, 1):
            os.kill(os.getpid(), signal.SIGINT)

    def begun(name: str) -> Path:
        train_here("cmunext-s", recipe, dataset, tmp_path / name, on_step=stop)
        return tmp_path / name

    def kept(run: Path) -> int:
        return torch.load(run / "last.ckpt", weights_only=True)["steps"]["kernels"]

    by_kernels = begun("by kernels")
    assert kept(by_kernels) == VERSION
    with monkeypatch.context() as patched:
        patched.setattr(compiled, "compiler", lambda: None)
        patched.setenv("CMUNEXT_CACHE", str(tmp_path / "empty"))
        library._load.cache_clear()
        by_pytorch = begun("by PyTorch")
        assert kept(by_pytorch) == 0
        said = train_here("cmunext-s", recipe, dataset, by_kernels, resume=True)
        assert any("not to the same bits" in sentence for sentence in said)
        assert any("needs a C++ compiler; install g++ 12 or newer, or go on without" in sentence for sentence in said)
    library._load.cache_clear()
    said = train_here("cmunext-s", recipe, dataset, by_pytorch, resume=True)
    assert kept(by_pytorch) == 0 and not any("bits" in sentence for sentence in said)
