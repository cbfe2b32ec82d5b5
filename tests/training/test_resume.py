"""A training that is killed anywhere and goes on ends bit for bit as one that never stopped."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.datasets import write_dataset

FILES = ("history.csv", "best.safetensors", "last.safetensors", "ema.safetensors", "recipe.json")
SETTINGS = (
    "epochs=4",
    "learning_rate=0.05",
    "size=32",
    "batch_size=3",
    "augmentation.affine=0.5",
    "augmentation.rotation=20",
    "augmentation.intensity=0.5",
)


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    lists = ["--train", "train.txt", "--val", "val.txt"]
    return [sys.executable, "-m", "cmunext", "train", str(dataset), "--network", "cmunext-s", *lists, "--out", str(out),
            "--device", "cpu", "--threads", "1", *settings, *more]  # fmt: skip


def digests(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, dict[str, str], float]:
    """A dataset, the digests of an unbroken run on it, and its seconds."""
    root = tmp_path_factory.mktemp("resume")
    write_dataset(root / "data")
    started = time.monotonic()
    subprocess.run(command(root / "data", root / "unbroken"), check=True, capture_output=True)
    return root, digests(root / "unbroken"), time.monotonic() - started


def killed_and_resumed(dataset: Path, out: Path, after: list[float]) -> int:
    """Start, SIGKILL after each number of seconds, then run to the end; gives how many kills hit a living process."""
    hits = 0
    for seconds in after:
        process = subprocess.Popen(command(dataset, out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            hits += 1
        process.wait()
    subprocess.run(command(dataset, out, "--resume"), check=True, capture_output=True)
    return hits


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_anywhere_ends_bit_identical(unbroken, tmp_path: Path, kills: int) -> None:
    root, expected, seconds = unbroken
    moments = random.Random(kills)
    hits = killed_and_resumed(root / "data", tmp_path / "run", [moments.uniform(0.3, 1.0) * seconds for _ in range(kills)])
    assert hits, "no kill came before the end"
    assert digests(tmp_path / "run") == expected
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in (root / "unbroken").iterdir()}


def test_interrupt_saves_within_the_epoch_and_says_how_to_go_on(unbroken, tmp_path: Path) -> None:
    root, expected, _ = unbroken
    process = subprocess.Popen(command(root / "data", tmp_path / "run"), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "history.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    if process.returncode == 0:
        pytest.skip("the training ended before the signal came")
    assert process.returncode == 130
    assert "--resume" in told
    assert "Traceback" not in told
    subprocess.run(command(root / "data", tmp_path / "run", "--resume"), check=True, capture_output=True)
    assert digests(tmp_path / "run") == expected


def test_a_checkpoint_with_a_changed_byte_is_not_gone_on_from(unbroken, tmp_path: Path) -> None:
    root, _, _ = unbroken
    shutil.copytree(root / "unbroken", tmp_path / "run")
    content = bytearray((tmp_path / "run" / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "run" / "last.ckpt").write_bytes(content)
    told = subprocess.run(command(root / "data", tmp_path / "run", "--resume"), capture_output=True, text=True)
    assert told.returncode == 1
    assert "last.ckpt cannot be read; delete it" in told.stderr


def test_a_finished_run_resumes_to_itself(unbroken) -> None:
    root, expected, _ = unbroken
    subprocess.run(command(root / "data", root / "unbroken", "--resume"), check=True, capture_output=True)
    assert digests(root / "unbroken") == expected


def test_a_run_goes_on_with_the_threads_that_it_began_with(unbroken, tmp_path: Path) -> None:
    root, expected, _ = unbroken
    shutil.copytree(root / "unbroken", tmp_path / "run")
    told = subprocess.run(command(root / "data", tmp_path / "run", "--resume", "--threads", "2"), capture_output=True, text=True)
    assert told.returncode == 0
    assert "threads is 2, and the run was begun with 1; it goes on with 1" in told.stderr
    assert digests(tmp_path / "run") == expected


def test_a_run_is_not_touched_without_resume_nor_with_another_recipe(unbroken) -> None:
    root, expected, _ = unbroken
    ranks = (
        {},
        {"LOCAL_RANK": "0", "RANK": "0"},
        {"SLURM_PROCID": "1"},
    )  # also a launcher's first process, and one of many tasks
    for rank in ranks:
        call, environment = command(root / "data", root / "unbroken"), {**os.environ, **rank}
        again = subprocess.run(call, capture_output=True, text=True, env=environment)
        assert again.returncode == 2
        assert "--resume" in again.stderr
    other = subprocess.run(
        command(root / "data", root / "unbroken", "--resume", "--set", "epochs=9"), capture_output=True, text=True
    )
    assert other.returncode == 2
    assert "epochs was 4 and is 9" in other.stderr
    assert digests(root / "unbroken") == expected
