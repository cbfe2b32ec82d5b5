"""The same segmenter over PyTorch, from a .safetensors file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_network import dark_discs

from cmunext.errors import InputError, UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.inference.segmenter import Segmenter
from cmunext.metadata import Metadata

torch = pytest.importorskip("torch")
from cmunext import networks, weights  # noqa: E402 (only where there is torch)

PREPROCESSING = Preprocessing(height=64, width=96)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.create("cmunext-s").eval()


@pytest.fixture(scope="module")
def path(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    weights.save(path, network, Metadata("cmunext-s", {"in_channels": 3, "num_classes": 1}, PREPROCESSING, ("lesion",)))
    return path


def test_the_logits_are_the_networks(path: Path, network: torch.nn.Module) -> None:
    image = dark_discs()
    run = Segmenter.load(path)
    assert (run.backend.name, run.backend.precision) == ("torch", "float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(PREPROCESSING.to_input(image)))[0].numpy()
    np.testing.assert_allclose(run.predict_logits(image), expected, rtol=1e-4, atol=1e-5)
    segmentation = run(image)
    assert segmentation.mask.shape == image.shape
    np.testing.assert_array_equal(segmentation.mask, PREPROCESSING.to_mask(run.predict_logits(image), image.shape)[0])


def test_threads_are_set(path: Path) -> None:
    before = torch.get_num_threads()
    try:
        Segmenter.load(path, backend="torch", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_does_not_go_together(path: Path) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime opens \.onnx"):
        Segmenter.load(path, backend="onnxruntime")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="PyTorch finds none"):
            Segmenter.load(path, device="cuda")


def test_a_damaged_file_is_told(path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        Segmenter.load(cut)


def test_without_torch_the_remedy_is_named(path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from cmunext.cli.main import main;"
        f"sys.exit(main(['segment', {__file__!r}, '--weights', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this backend needs PyTorch; install cmunext[train], or give .onnx weights\n"
