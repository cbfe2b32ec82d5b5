"""The loop itself: NaN, frozen statistics, and two processes that take the same steps as one."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from tests.datasets import write_dataset
from tests.tiny_training import three_layers

from cmunext import weights
from cmunext.benchmark.evaluate import evaluate
from cmunext.cli.main import main
from cmunext.data.layout import Layout
from cmunext.inference.segmenter import Segmenter
from cmunext.storage import alone_in
from cmunext.training.step import average_of

SETTINGS = ("epochs=3", "size=32", "batch_size=5", "learning_rate=0.05", "freeze_batch_statistics=true", "precision=32-true")


class Done(NamedTuple):
    code: int
    told: str  # stderr, its line breaks as blanks
    printed: str  # stdout


def arguments(dataset: Path, out: Path, *more: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    lists = ["--train", "train.txt", "--val", "val.txt"]
    fixed = ["--network", "cmunext-s", "--out", str(out), "--device", "cpu", "--threads", "1"]
    return ["train", str(dataset), *lists, *fixed, *settings, *more]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process."""

    def run_here(dataset: Path, out: Path, *more: str) -> Done:
        code = main(arguments(dataset, out, *more))
        captured = capsys.readouterr()
        return Done(code, " ".join(captured.err.split()), captured.out)

    return run_here


def run_two_processes(dataset: Path, out: Path, *more: str) -> Done:
    command = [sys.executable, "-m", "cmunext", *arguments(dataset, out, *more), "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return Done(done.returncode, " ".join(done.stderr.split()), done.stdout)


def history(out: Path) -> np.ndarray:
    with (out / "history.csv").open() as file:
        return np.array([[float(value or "nan") for value in row.values()] for row in csv.DictReader(file)])


@pytest.mark.parametrize("batch_size", [5, 7])
def test_two_processes_take_the_steps_of_one(run, tmp_path: Path, batch_size: int) -> None:
    """8 cases in batches of 5 are cut 3 + 2, then 2 + 1; in batches of 7 the last batch has one case, so one process has none."""
    write_dataset(tmp_path / "data")
    more = ("--set", f"batch_size={batch_size}")
    one = run(tmp_path / "data", tmp_path / "one", *more)
    two = run_two_processes(tmp_path / "data", tmp_path / "two", *more, "--json")
    assert one.code == 0, one.told
    assert two.code == 0, two.told
    assert two.told.count("no synchronised BatchNorm on the CPU") == 1
    assert [two.told.count(f"epoch {epoch} loss") for epoch in (1, 2, 3)] == [1, 1, 1]
    assert json.loads(two.printed)["epochs"] == 3, "one document, of the first process"
    np.testing.assert_allclose(history(tmp_path / "two"), history(tmp_path / "one"), rtol=2e-5)


def test_the_same_command_and_seed_give_the_same_bits(run, tmp_path: Path) -> None:
    """Recipe strong, in this machine's own precision, on two threads."""
    write_dataset(tmp_path / "data")
    more = ("--recipe", "strong", "--set", "precision=auto", "--set", "freeze_batch_statistics=false", "--threads", "2")
    for out, seed in (("one", 7), ("two", 7), ("other", 8)):
        done = run(tmp_path / "data", tmp_path / out, *more, "--set", f"seed={seed}")
        assert done.code == 0, done.told
    for name in ("history.csv", "ema.safetensors", "last.safetensors"):
        one, two, other = ((tmp_path / out / name).read_bytes() for out in ("one", "two", "other"))
        assert one == two
        assert one != other


def test_a_loss_that_is_not_finite_stops_with_step_and_cases(run, tmp_path: Path) -> None:
    names = write_dataset(tmp_path / "data")
    done = run(tmp_path / "data", tmp_path / "run", "--set", "learning_rate=1e30", "--set", "freeze_batch_statistics=false")
    assert done.code == 1
    told = done.told
    assert "the loss is nan at step" in told
    assert any(name in told for name in names)
    assert "nothing was saved" in told
    assert not (tmp_path / "run").exists(), "and nothing is in the way of the corrected command"


def test_weights_that_the_last_step_of_an_epoch_ruined_are_not_saved(run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    done = run(tmp_path / "data", tmp_path / "run", "--network", "tests.tiny_training:Ruined", "--set", "batch_size=100")
    assert done.code == 1
    assert "the weights are not finite after step 1 of epoch 1" in done.told
    assert not (tmp_path / "run").exists()


def test_two_classes_with_softmax(run, tmp_path: Path) -> None:
    names = write_dataset(tmp_path / "data", classes=2)
    softmax = ("--set", "loss=boundary-dou", "--set", "precision=32-true", "--set", "size=48")  # the size of the images
    refused = run(tmp_path / "data", tmp_path / "run", *softmax)
    assert refused.code == 2
    assert f"write their names into {tmp_path / 'data' / 'classes.txt'}" in refused.told
    (tmp_path / "data" / "classes.txt").write_text("background\nlesion\n")
    refused = run(tmp_path / "data", tmp_path / "run", *softmax)
    assert refused.code == 1
    assert "in no class or in several" in refused.told
    for name in names:  # class 0 becomes the background of class 1
        lesion = cv2.imread(str(tmp_path / "data/masks/1" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(tmp_path / "data/masks/0" / f"{name}.png"), 255 - lesion)
    done = run(tmp_path / "data", tmp_path / "run", *softmax)
    assert done.code == 0, done.told
    assert np.isfinite(history(tmp_path / "run")).all()
    segmenter = Segmenter.load(tmp_path / "run" / "ema.safetensors")
    assert segmenter.metadata.classes == ("background", "lesion")
    assert {lesion.class_index for lesion in segmenter(tmp_path / "data/images" / f"{names[0]}.png").lesions} <= {1}
    layout = Layout.open(tmp_path / "data")
    measured = evaluate(segmenter, layout, layout.read_list("val.txt"), at="network")
    assert measured.classes == ("lesion",)
    last = (tmp_path / "run" / "history.csv").read_text().splitlines()
    told = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    assert float(told["val_iou"]) == pytest.approx(measured.summary()["per_image"]["iou"], abs=1e-6)


@pytest.mark.parametrize(
    ("decay", "shares"),
    [
        (0.2, [[1.0], [2 / 11, 9 / 11], [0.4 / 11, 1.8 / 11, 0.8]]),
        (0.1, [[1.0], [0.1, 0.9], [0.01, 0.09, 0.9], [0.001, 0.009, 0.09, 0.9]]),
        (0.998, [[1.0], [2 / 11, 9 / 11], [0.5 / 11, 2.25 / 11, 0.75]]),
    ],
)
def test_an_average_of_weights_has_so_much_of_each_step(decay: float, shares: list[list[float]]) -> None:
    network = three_layers(1, 1)
    average = average_of(network, decay)
    assert average is not None
    seen = []
    for share in shares:
        network(torch.randn(2, 1, 8, 8))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        seen.append({name: tensor.double().clone() for name, tensor in network.state_dict().items()})
        average.update_parameters(network)
        for name, tensor in average.module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert tensor == len(seen)
            else:
                expected = sum(part * state[name] for part, state in zip(share, seen, strict=True))
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_weights_do_not_need_the_file_that_training_began_with(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, start = "tests.tiny_training:one_layer_from", tmp_path / "start.pth"
    monkeypatch.setenv("CMUNEXT_NETWORKS", name)
    write_dataset(tmp_path / "data")
    began = {"weight": torch.full((1, 3, 3, 3), 0.5), "bias": torch.tensor([0.25])}
    torch.save(began, start)
    more = ("--network", name, "--network-arguments", f'{{"pretrained": "{start}"}}', "--set", "learning_rate=1e-9")
    done = run(tmp_path / "data", tmp_path / "run", *more)
    assert done.code == 0, done.told
    start.unlink()
    loaded = weights.load(tmp_path / "run" / "last.safetensors").network.state_dict()
    for key, value in began.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [("size=16", "batch_size=1"), ("size=16", "batch_size=7")])  # of 8 cases
def test_norms_over_a_single_number_are_refused(run, tmp_path: Path, settings: tuple[str, ...]) -> None:
    write_dataset(tmp_path / "data")
    more = [word for setting in (*settings, "freeze_batch_statistics=false") for word in ("--set", setting)]
    done = run(tmp_path / "data", tmp_path / "run", *more)
    assert done.code == 2
    assert "at 16 x 16 a batch of a single image is too small for the norms of cmunext-s" in done.told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (("--set", "size=40"), 2, "nearest size that works is 32 x 32"),
        (("--network", "cmunext-xl"), 2, "no network 'cmunext-xl'"),
        (("--val", "missing.txt"), 2, "missing.txt is neither a file"),
        (("--device", "tpu"), 2, "choose auto, cpu or cuda"),
        (("--network-arguments", '{"in_channels": 1}'), 2, "in_channels is 1, and recipe and masks make it 3"),
        (("--network-arguments", '{"num_classes": 2}'), 2, "num_classes is 2, and recipe and masks make it 1"),
    ],
)
def test_wrong_calls_are_one_sentence(run, tmp_path: Path, more: tuple[str, ...], code: int, told: str) -> None:
    write_dataset(tmp_path / "data")
    done = run(tmp_path / "data", tmp_path / "run", *more)
    assert done.code == code, done.told
    assert told in done.told
    assert not (tmp_path / "run").exists(), "a refused call leaves nothing behind"
    assert "Traceback" not in done.told


def test_a_run_keeps_to_the_class_names_that_it_was_begun_with(run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", classes=2)
    assert run(tmp_path / "data", tmp_path / "run").code == 0
    (tmp_path / "data" / "classes.txt").write_text("background\nlesion\n")
    refused = run(tmp_path / "data", tmp_path / "run", "--resume")
    assert refused.code == 2
    assert "was begun with the classes class 0, class 1, and" in refused.told


def test_a_run_that_has_no_checkpoint_says_what_it_is_begun_anew_with(run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    assert run(tmp_path / "data", tmp_path / "run", "--network", "tests.tiny_training:one_layer").code == 0
    for path in (tmp_path / "run").iterdir():
        if path.name != "recipe.json":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    assert run(tmp_path / "data", tmp_path / "run", "--network", "tests.tiny_training:three_layers", "--resume").code == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["network"] == "tests.tiny_training:three_layers"


def test_a_second_training_in_the_same_folder_is_refused_and_what_a_killed_one_left_is_removed(run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    out = tmp_path / "run"
    assert run(tmp_path / "data", out).code == 0
    left = out / ".last-0123456789abcdef.part.ckpt"
    left.touch()
    with alone_in(out):
        refused = run(tmp_path / "data", out, "--resume")
    assert refused.code == 2
    assert f"another training is at work in {out}" in refused.told
    assert left.exists()
    assert run(tmp_path / "data", out, "--resume").code == 0
    assert not left.exists()


def test_what_was_there_stays_when_a_run_begun_anew_fails(run, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    out, failing = tmp_path / "run", ("--set", "learning_rate=1e30", "--set", "freeze_batch_statistics=false")
    (out / "tensorboard").mkdir(parents=True)
    for name in ("best.safetensors", "tensorboard/mine", "notes.txt"):
        (out / name).write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(tmp_path / "data", out, "--resume", *failing).code == 1
    assert before.items() <= {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}.items()
    assert not (out / "recipe.json").exists()
