"""Distillation: what is learnt from teachers, which teachers are refused, and going on exactly."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_training import one_layer
from tests.training_here import train_here

from cmunext import weights
from cmunext.data.dataset import load_cases
from cmunext.data.layout import Layout
from cmunext.errors import UsageError
from cmunext.image.preprocess import Preprocessing
from cmunext.metadata import LEARNT_FROM, Metadata
from cmunext.training import distill
from cmunext.training.batches import HostBatches, Normalise
from cmunext.training.recipe import DEFAULT, with_settings

NETWORK = "tests.tiny_training:one_layer"
RECIPE = with_settings(DEFAULT, ["epochs=3", "size=32", "batch_size=3", "learning_rate=0.05", "precision=32-true"])
FILES = ("history.csv", "best.safetensors", "last.safetensors", "ema.safetensors", "recipe.json")
SMALL = Preprocessing(height=32, width=32)
pytestmark = pytest.mark.usefixtures("trusted")


def write_teacher(path: Path, gain: float, preprocessing: Preprocessing = SMALL, classes: tuple[str, ...] = ("lesion",)) -> Path:
    """A convolution whose logit is `gain` * (mean of the normalised channels + 1), which says nothing of where it comes from."""
    channels = preprocessing.in_channels
    network = one_layer(channels, len(classes))
    with torch.no_grad():
        network.weight.zero_()
        network.weight[:, :, 1, 1] = gain / channels
        network.bias.fill_(gain)
    arguments = {"in_channels": channels, "num_classes": len(classes)}
    weights.save(path, network, Metadata(NETWORK, arguments, preprocessing, classes))
    return path


def run(
    dataset: Path, out: Path, *settings: str, step: Callable[[int, int], None] = lambda epoch, done: None, **changes
) -> list[str]:
    """Train here and give what was said."""
    on_step = lambda epoch, done, _batches, _loss: step(epoch, done)  # noqa: E731
    return train_here(NETWORK, with_settings(RECIPE, settings), dataset, out, on_step, **changes)


def probabilities(file: Path, dataset: Path) -> torch.Tensor:
    """What the weights say of the validation images, at their own channel order and normalisation."""
    held = weights.load(file)
    layout = Layout.open(dataset)
    cases = load_cases(layout, layout.read_list(Path("val.txt")), held.preprocessing)
    images, _ = HostBatches(cases).validation(np.arange(len(cases)))
    with torch.no_grad():
        return torch.sigmoid(held.network(Normalise(held.preprocessing, torch.device("cpu"))(images)))


def digests(run_folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run_folder / name).read_bytes()).hexdigest() for name in FILES}


def test_with_weight_1_the_teacher_is_followed_against_the_truth(dataset: Path, tmp_path: Path) -> None:
    """The teacher takes what is dark for lesion, which is what the masks leave out."""
    teacher = write_teacher(tmp_path / "dark.safetensors", gain=-4.0)
    wanted = probabilities(teacher, dataset)
    distance = {}
    for weight in (0.0, 1.0):
        out = tmp_path / f"weight {weight}"
        run(dataset, out, "epochs=40", f"distill_weight={weight}", "ema_decay=0.0", teachers=(teacher,))
        distance[weight] = float((probabilities(out / "last.safetensors", dataset) - wanted).abs().mean())
    run(dataset, tmp_path / "first", "epochs=1", "learning_rate=1e-12", "ema_decay=0.0")
    start = float((probabilities(tmp_path / "first" / "last.safetensors", dataset) - wanted).abs().mean())
    assert distance[1.0] < 0.15 < start
    assert distance[0.0] > 0.6


def test_the_mean_is_over_teachers_each_with_its_own_channels_and_normalisation(dataset: Path, tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    other = replace(SMALL, channels="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    files = [write_teacher(tmp_path / "a.safetensors", 2.0), write_teacher(tmp_path / "b.safetensors", -3.0, other)]
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    teachers = distill.load_teachers(files, RECIPE, ("lesion",))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = distill.MeanProbability(teachers, "rgb", fabric)(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = []
    for file in files:
        held = weights.load(file)
        inputs = np.concatenate([held.preprocessing.to_input(image) for image in images])
        with torch.no_grad():
            expected.append(torch.sigmoid(held.network(torch.from_numpy(inputs))).numpy())
    np.testing.assert_allclose(found.numpy(), np.mean(expected, axis=0), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (64, 48)])
def test_a_teacher_of_another_size_sees_the_images_resized(dataset: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """It judges pixel by pixel here, so that what it says of an area is the same at each size, away from the border of the area."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    images = torch.full((2, 3, 32, 32), 20, dtype=torch.uint8)
    images[0, :, :, 16:], images[1, :, 8:] = 220, 120
    found = {}
    for height, width in ((32, 32), size):
        file = write_teacher(tmp_path / f"{height}.safetensors", 2.0, Preprocessing(height=height, width=width))
        found[height] = distill.MeanProbability(distill.load_teachers([file], RECIPE, ("lesion",)), "rgb", fabric)(images)
    away = torch.ones_like(found[32], dtype=torch.bool)
    away[0, :, :, 12:20], away[1, :, 4:12] = False, False
    assert found[size[0]].shape == (2, 1, 32, 32)
    torch.testing.assert_close(found[size[0]][away], found[32][away], atol=1e-6, rtol=0)
    assert float(found[32][away].max() - found[32][away].min()) > 0.4
    run(dataset, tmp_path / "run", "epochs=1", teachers=(tmp_path / f"{size[0]}.safetensors",))
    assert (tmp_path / "run" / "ema.safetensors").exists()


def test_a_teacher_that_learnt_from_a_validation_image_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Whatever the image was called there, and also when it was the teacher's own teacher that learnt from it."""
    renamed = tmp_path / "renamed"
    for folder in ("images", "masks/0"):
        shutil.copytree(dataset / folder, renamed / folder)
        for number, file in enumerate(sorted((renamed / folder).iterdir())):
            file.rename(file.with_name(f"{number}.png"))
    (renamed / "val.txt").write_text("11\n")  # no validation image of `dataset`; all of those are among the others
    (renamed / "train.txt").write_text("\n".join(map(str, range(11))))
    run(renamed, tmp_path / "leaking")
    leaking = tmp_path / "leaking" / "last.safetensors"
    (renamed / "train.txt").write_text("1\n")
    run(renamed, tmp_path / "pupil", teachers=(leaking,))
    for teacher in (leaking, tmp_path / "pupil" / "last.safetensors"):
        with pytest.raises(UsageError, match=r"was trained on 4 of the 4 validation images of this run, 'benign \(1\)'"):
            run(dataset, tmp_path / "run", teachers=(teacher,))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_the_same_split_is_taken_and_named(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "teacher")
    teacher = tmp_path / "teacher" / "best.safetensors"
    said = run(dataset, tmp_path / "student", teachers=(teacher,))
    assert not [sentence for sentence in said if "teacher" in sentence]
    named = {"file": "best.safetensors", "sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(), "network": NETWORK}
    expected = {"weight": 0.5, "teachers": [named]}
    assert json.loads((tmp_path / "student" / "recipe.json").read_text())["distillation"] == expected
    assert weights.load(tmp_path / "student" / "best.safetensors").metadata.training["distillation"] == expected


def test_a_teacher_that_does_not_say_is_taken_with_a_warning_and_its_pupil_does_not_say_either(
    dataset: Path, tmp_path: Path
) -> None:
    silent = write_teacher(tmp_path / "silent.safetensors", 1.0)
    said = run(dataset, tmp_path / "run", teachers=(silent,))
    assert any("silent.safetensors does not say what it was trained on" in sentence for sentence in said)
    assert LEARNT_FROM not in weights.load(tmp_path / "run" / "best.safetensors").metadata.training
    run(dataset, tmp_path / "without")
    assert len(weights.load(tmp_path / "without" / "best.safetensors").metadata.training[LEARNT_FROM]) == 8


@pytest.mark.parametrize("in_epoch", [True, False])
def test_going_on_is_bit_identical(dataset: Path, tmp_path: Path, in_epoch: bool) -> None:
    """After Ctrl-C in the middle of an epoch, which saves, and after a death there, which takes the epoch back."""
    teachers = (write_teacher(tmp_path / "a.safetensors", 2.0), write_teacher(tmp_path / "b.safetensors", -1.0))
    run(dataset, tmp_path / "unbroken", "augmentation.cutmix=0.5", teachers=teachers)

    class Death(Exception):
        pass

    def stop(epoch: int, done: int) -> None:
        if (epoch, done) == (1, 2):
            if not in_epoch:
                raise Death
            os.kill(os.getpid(), signal.SIGINT)

    try:
        run(dataset, tmp_path / "broken", "augmentation.cutmix=0.5", teachers=teachers, step=stop)
    except Death:
        assert not in_epoch
    assert not (tmp_path / "broken" / "last.safetensors").exists()
    run(dataset, tmp_path / "broken", "augmentation.cutmix=0.5", teachers=teachers[::-1], resume=True)
    assert digests(tmp_path / "broken") == digests(tmp_path / "unbroken")


def test_going_on_with_other_teachers_is_refused(dataset: Path, tmp_path: Path) -> None:
    first, second = write_teacher(tmp_path / "a.safetensors", 2.0), write_teacher(tmp_path / "b.safetensors", -1.0)
    run(dataset, tmp_path / "run", teachers=(first,))
    run(dataset, tmp_path / "run", teachers=(first,), resume=True)
    before = digests(tmp_path / "run")
    with pytest.raises(UsageError, match=r"begun with --teachers a\.safetensors \(\w{8}\) and is given b\.safetensors"):
        run(dataset, tmp_path / "run", teachers=(second,), resume=True)
    with pytest.raises(UsageError, match="is given none"):
        run(dataset, tmp_path / "run", resume=True)
    run(dataset, tmp_path / "alone")
    with pytest.raises(UsageError, match="begun with --teachers none"):
        run(dataset, tmp_path / "alone", teachers=(first,), resume=True)
    assert digests(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("preprocessing", "classes", "settings", "told"),
    [
        (replace(SMALL, channels="grey", mean=(0.5,), std=(0.5,)), ("lesion",), (), "takes grey images and this run rgb"),
        (SMALL, ("class 0", "class 1"), (), "knows the classes class 0, class 1 and this run lesion"),
        (replace(SMALL, activation="softmax"), ("lesion",), (), "activation softmax"),
        (SMALL, ("lesion",), ("loss=boundary-dou",), "set loss=bce-dice"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    dataset: Path, tmp_path: Path, preprocessing: Preprocessing, classes: tuple[str, ...], settings: tuple[str, ...], told: str
) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors", 1.0, preprocessing, classes)
    with pytest.raises(UsageError, match=told):
        run(dataset, tmp_path / "run", *settings, teachers=(teacher,))
    assert not (tmp_path / "run").exists()


def test_a_teacher_twice_and_a_weight_without_teacher_are_refused(dataset: Path, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "a.safetensors", 1.0)
    with pytest.raises(UsageError, match="give each teacher once"):
        run(dataset, tmp_path / "run", teachers=(teacher, teacher))
    with pytest.raises(UsageError, match="add --teachers FILE"):
        run(dataset, tmp_path / "run", "distill_weight=0.7")
    assert not (tmp_path / "run").exists()
