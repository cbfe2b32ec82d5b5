"""Every network learns: one epoch of real training on real images lowers its loss on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cmunext import losses, networks
from cmunext.cli.main import main
from cmunext.data.dataset import Cases, load_cases
from cmunext.data.layout import Layout
from cmunext.training.batches import HostBatches, Normalise
from cmunext.training.recipe import DEFAULT, with_settings

CASES, BATCH = 24, 4
SIZES = {"swin-unet": 224, "medt": 128}  # the smallest that they take; 64 for all others
QUICK = {"cmunext-s", "unext", "convunext", "reduced-unet"}


@pytest.fixture(scope="module")
def nuclei(shared: Path, tmp_path_factory) -> Path:
    """A few of the nuclei images, as a dataset with lists."""
    source, root = shared / "data" / "dsb2018", tmp_path_factory.mktemp("nuclei")
    names = [path.stem for path in sorted((source / "images").iterdir())[: CASES + 2]]
    for folder in ("images", "masks/0"):
        (root / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(source / folder / f"{name}.png", root / folder)
    (root / "train.txt").write_text("\n".join(names[:CASES]))
    (root / "val.txt").write_text("\n".join(names[CASES:]))
    return root


def loss_on(network: torch.nn.Module, cases: Cases) -> float:
    """Mean loss by the batch's own statistics, as in training, without changing anything."""
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    normalise, loss_of = Normalise(DEFAULT.preprocessing, torch.device("cpu")), losses.BCEDiceLoss()
    torch.manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = [
            float(loss_of(network.train()(normalise(images)).float(), masks.float()))
            for images, masks in (HostBatches(cases).validation(np.arange(i, i + BATCH)) for i in range(0, len(cases), BATCH))
        ]
    for name, buffer in network.named_buffers():
        buffer.copy_(statistics[name])
    return float(np.mean(values))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in networks.names()]
)
def test_one_epoch_lowers_the_loss(name: str, nuclei: Path, tmp_path: Path) -> None:
    from cmunext import weights

    size = SIZES.get(name, 64)
    settings = ["epochs=1", f"size={size}", f"batch_size={BATCH}", "ema_decay=0.0", "schedule=constant", "optimizer=adamw"]
    settings.append("learning_rate=0.001")
    recipe = with_settings(DEFAULT, settings)
    cases = load_cases(Layout.open(nuclei), (nuclei / "train.txt").read_text().splitlines(), recipe.preprocessing)
    arguments = {"image_size": size} if name in ("swin-unet", "medt", "transunet") else {}
    torch.manual_seed(recipe.seed)
    before = loss_on(networks.create(name, **arguments), cases)

    options = [word for setting in settings for word in ("--set", setting)]
    call = ["train", str(nuclei), "--network", name, "--train", "train.txt", "--val", "val.txt", "--device", "cpu"]
    assert main([*call, "--out", str(tmp_path / "run"), *options]) == 0
    after = loss_on(weights.load(tmp_path / "run" / "last.safetensors").network, cases)
    assert after < before - 0.02, f"the loss was {before:.3f} and is {after:.3f}"


def test_a_network_of_ones_own(nuclei: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "trained_elsewhere.py").write_text(
        "from torch import nn\n\n\ndef small(in_channels, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    call = [
        "train",
        str(nuclei),
        "--network",
        "trained_elsewhere:small",
        "--train",
        "train.txt",
        "--val",
        "val.txt",
        "--device",
        "cpu",
    ]
    assert main([*call, "--out", str(tmp_path / "run"), "--set", "epochs=1", "--set", "size=32"]) == 0
    trained = str(tmp_path / "run" / "ema.safetensors")
    assert main(["evaluate", trained, str(nuclei), "--list", "val.txt"]) == 1, "a file alone must not choose what runs"
    assert "CMUNEXT_NETWORKS=trained_elsewhere:small" in capsys.readouterr().err
    monkeypatch.setenv("CMUNEXT_NETWORKS", "trained_elsewhere:small")
    assert main(["evaluate", trained, str(nuclei), "--list", "val.txt", "--json"]) == 0
    assert main(["export", trained, str(tmp_path / "own.onnx")]) == 0
    assert main(["segment", str(nuclei / "images"), "--weights", str(tmp_path / "own.onnx"), "--out", str(tmp_path / "out")]) == 0
