"""The mean of several weights: its tensors, what it says of itself, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_training import one_layer, three_layers

from cmunext import weights
from cmunext.cli.main import main
from cmunext.errors import UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import LEARNT_FROM, Metadata
from cmunext.training.average import write_average

pytestmark = pytest.mark.usefixtures("trusted")
MADE = {"tests.tiny_training:three_layers": three_layers, "tests.tiny_training:one_layer": one_layer}
NETWORK = ",".join(MADE)  # both are trusted


def written(folder: Path, seed: int, network: str = "tests.tiny_training:three_layers", **changes) -> Path:
    """Weights of a tiny network that has seen a batch of noise, saying that they learnt from two images."""
    torch.manual_seed(seed)
    made = MADE[network](3, 1).train()
    made(torch.randn(4, 3, 8, 8))
    training = {"epoch": seed, "validation": {"val_iou": 0.5}, "seed": seed, LEARNT_FROM: [f"image{seed}", "image"]}
    metadata = Metadata(network, {"in_channels": 3, "num_classes": 1}, Preprocessing(32, 32), ("lesion",), training)
    path = folder / f"weights{seed}.safetensors"
    weights.save(path, made, replace(metadata, **changes))
    return path


def test_every_tensor_is_the_mean_of_the_files(tmp_path: Path) -> None:
    files = [written(tmp_path, seed) for seed in (1, 2, 3)]
    write_average(files, tmp_path / "mean.safetensors")
    states = [weights.load(file).network.state_dict() for file in files]
    mean = weights.load(tmp_path / "mean.safetensors").network.state_dict()
    assert {"1.running_mean", "1.running_var", "0.weight"} <= mean.keys()
    for name, tensor in mean.items():
        expected = np.mean([state[name].numpy().astype(np.longdouble) for state in states], axis=0)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-7, atol=0)
    assert mean["1.num_batches_tracked"] == 1


def test_it_says_what_it_was_made_of_and_claims_no_score(tmp_path: Path) -> None:
    files = [written(tmp_path, seed) for seed in (2, 1)]
    write_average(files, tmp_path / "mean.safetensors")
    training = weights.load(tmp_path / "mean.safetensors").metadata.training
    assert training["seed"] == 1, "the description is the last one's"
    assert [one["file"] for one in training["mean_of"]] == [file.name for file in files]
    assert training[LEARNT_FROM] == ["image", "image1", "image2"]
    assert not {"epoch", "validation"} & training.keys()


def test_what_is_not_known_of_one_is_not_known_of_the_mean(tmp_path: Path) -> None:
    files = [written(tmp_path, 1, training={}), written(tmp_path, 2)]
    write_average(files, tmp_path / "mean.safetensors")
    assert weights.load(tmp_path / "mean.safetensors").metadata.learnt_from is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "tests.tiny_training:one_layer"}, "weights1.safetensors has network 'tests.tiny_training:one_layer' and"),
        ({"preprocessing": Preprocessing(32, 64)}, "has width 64 and weights2.safetensors 32; average weights of one network"),
        ({"classes": ("cyst",)}, "has classes"),
    ],
)
def test_weights_that_do_not_belong_together_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    files = [written(tmp_path, 1, **change), written(tmp_path, 2)]
    with pytest.raises(UsageError, match=words):
        write_average(files, tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_the_command_averages_and_refuses_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second, out = str(written(tmp_path, 1)), str(written(tmp_path, 2)), tmp_path / "mean.safetensors"
    assert main(["average", first, "--out", str(out)]) == 2
    assert "there is 1 weights file to average; give two or more" in capsys.readouterr().err
    assert main(["average", first, second, first, "--out", str(out)]) == 2
    assert "two are the same" in capsys.readouterr().err
    assert main(["average", first, second, "--out", str(out.with_suffix(".onnx"))]) == 2
    assert "mean.onnx would be a .safetensors file; name it so" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.glob("mean.*")] == []
    assert main(["average", first, second, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    content = out.read_bytes()
    assert main(["average", first, second, "--out", str(out)]) == 0
    assert out.read_bytes() == content
