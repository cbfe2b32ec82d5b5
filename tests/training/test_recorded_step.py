"""The step that a GPU records and replays takes the same steps as the eager one. A CPU has no graphs: here "recording" keeps the function,
and what surrounds it (static inputs, rates as tensors, undoing the runs before, the average, checkpoints) is the GPU's."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.training_here import train_here
from torch import Tensor, nn

from cmunext import weights
from cmunext.errors import InputError
from cmunext.training import device_batches, step
from cmunext.training.recipe import DEFAULT, with_settings

RECIPE = with_settings(DEFAULT, ["epochs=3", "size=32", "batch_size=3", "precision=32-true"])  # 8 cases: batches of 3, 3 and 2
NETWORK = "tests.tiny_training:three_layers"  # with a norm, and not so deep that rounding grows
OPTIMIZERS = (("optimizer=sgd", "learning_rate=0.05"), ("optimizer=adamw", "learning_rate=0.002", "schedule=cosine"))
pytestmark = pytest.mark.usefixtures("trusted")


def keep_function(compute: Callable[[], Tensor], undo: Callable[[], None]) -> tuple[Callable[[], None], Tensor]:
    for _ in range(2):
        compute()
    undo()
    result = torch.zeros(())

    def replay() -> None:
        result.copy_(compute())

    return replay, result


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_batches, "fits", lambda *_: True)
    monkeypatch.setattr(step, "record_on_gpu", keep_function)


def run(dataset: Path, out: Path, *settings: str, **changes) -> list[str]:
    """Train here and give what was said."""
    return train_here(NETWORK, with_settings(RECIPE, settings), dataset, out, **changes)


def assert_same(first: Path, second: Path, tolerance: float) -> None:
    for name in ("last.safetensors", "ema.safetensors", "best.safetensors"):
        ours, theirs = (weights.load(folder / name).network.state_dict() for folder in (first, second))
        for key in theirs.keys() - {"0.bias", "1.running_mean"}:  # a bias before a norm has no gradient but rounding
            torch.testing.assert_close(ours[key], theirs[key], rtol=tolerance, atol=tolerance)
    ours, theirs = ((folder / "history.csv").read_text().splitlines() for folder in (first, second))
    assert len(ours) == len(theirs) == 4


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_recorded_steps_are_the_eager_ones(dataset: Path, tmp_path: Path, settings: tuple[str, ...], request) -> None:
    run(dataset, tmp_path / "eager", *settings)
    request.getfixturevalue("recorded")
    losses: list[float | None] = []
    run(dataset, tmp_path / "recorded", *settings, on_step=lambda *told: losses.append(told[-1]))
    assert losses == [None] * 9, "nothing waits for a loss"
    assert_same(tmp_path / "recorded", tmp_path / "eager", 2e-5)


def test_recorded_steps_learn_from_teachers_too(dataset: Path, tmp_path: Path, request) -> None:
    run(dataset, tmp_path / "teacher", "seed=7")
    teachers = (tmp_path / "teacher" / "last.safetensors",)
    run(dataset, tmp_path / "eager", teachers=teachers)
    request.getfixturevalue("recorded")
    run(dataset, tmp_path / "recorded", teachers=teachers)
    assert_same(tmp_path / "recorded", tmp_path / "eager", 2e-5)


def test_the_best_weights_are_of_an_epoch_that_a_kill_does_not_take_back(recorded, dataset: Path, tmp_path: Path) -> None:
    def killed_in_epoch_2(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "run", on_step=killed_in_epoch_2)
    best = weights.load(tmp_path / "run" / "best.safetensors").metadata.training["epoch"]
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert any(line.startswith(f"{best},") for line in history), "its epoch was saved with it"


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_going_on_after_a_stop_takes_the_same_steps(
    recorded, dataset: Path, tmp_path: Path, settings: tuple[str, ...], monkeypatch
) -> None:
    """Also when another layout was found to be the fastest this time."""
    layouts = iter([torch.contiguous_format, torch.contiguous_format, torch.channels_last])
    monkeypatch.setattr(step, "fastest_layout", lambda *_: next(layouts))
    run(dataset, tmp_path / "unbroken", *settings)

    def stop(epoch: int, done: int, *_) -> None:
        if (epoch, done) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    run(dataset, tmp_path / "broken", *settings, on_step=stop)
    assert not (tmp_path / "broken" / "last.safetensors").exists()
    run(dataset, tmp_path / "broken", *settings, resume=True)
    assert_same(tmp_path / "broken", tmp_path / "unbroken", 2e-5)


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_a_run_goes_on_from_the_other_kind_of_step(dataset: Path, tmp_path: Path, settings: tuple[str, ...], monkeypatch) -> None:
    """As when a checkpoint is taken from a GPU to a machine without one, or the other way round."""
    run(dataset, tmp_path / "eager", *settings)

    def stop(epoch: int, done: int, *_) -> None:
        if (epoch, done) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)

    for first in (True, False):
        out = tmp_path / f"recorded first {first}"
        for now, changes in ((first, {"on_step": stop}), (not first, {"resume": True})):
            with monkeypatch.context() as patch:
                if now:
                    patch.setattr(device_batches, "fits", lambda *_: True)
                    patch.setattr(step, "record_on_gpu", keep_function)
                run(dataset, out, *settings, **changes)
        assert_same(out, tmp_path / "eager", 2e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_every_batch_size_is_recorded_before_training_in_the_mode_of_training(
    recorded, dataset: Path, tmp_path: Path, monkeypatch, frozen: bool
) -> None:
    """A graph cannot be told later that its norms are to be frozen, and recording draws random numbers."""
    modes: list[bool] = []
    first_step: list[int] = []
    prepare = step.RecordedStep.prepare

    def watch(self: step.RecordedStep, images: Tensor, targets: tuple[Tensor, ...]) -> None:
        modes.append(next(module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)).training)
        prepare(self, images, targets)

    monkeypatch.setattr(step.RecordedStep, "prepare", watch)
    frozen_setting = f"freeze_batch_statistics={str(frozen).lower()}"
    run(dataset, tmp_path / "run", frozen_setting, on_step=lambda *_: first_step.append(len(modes)))
    assert modes == [not frozen] * 2, "batches of 3 and of 2"
    assert first_step[0] == 2


def test_a_loss_that_is_not_finite_is_found_at_the_epochs_end(recorded, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is nan at step \d+ \(epoch \d, batch \d\), cases: "):
        run(dataset, tmp_path / "run", "learning_rate=1e30", "warmup_epochs=0")


def test_where_recording_fails_training_runs_step_by_step_from_the_same_weights(
    dataset: Path, tmp_path: Path, monkeypatch
) -> None:
    run(dataset, tmp_path / "eager")

    def fail(compute: Callable[[], Tensor], undo: Callable[[], None]):
        compute()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(device_batches, "fits", lambda *_: True)
    monkeypatch.setattr(step, "record_on_gpu", fail)
    monkeypatch.setattr(step, "fastest_layout", lambda *_: torch.channels_last)
    said = run(dataset, tmp_path / "run")
    assert any("cannot be recorded as a CUDA graph (operation not permitted when stream is capturing)" in one for one in said)
    assert_same(tmp_path / "run", tmp_path / "eager", 2e-5)


def test_a_run_goes_on_in_the_layout_that_it_was_begun_in(recorded, dataset: Path, tmp_path: Path, monkeypatch) -> None:
    """What is the fastest is measured, and may come out otherwise the next time; in another layout sums are of other last bits."""

    def stop(epoch: int, done: int, *_) -> None:
        if (epoch, done) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(step, "fastest_layout", lambda *_: torch.contiguous_format)
    run(dataset, tmp_path / "run", on_step=stop)
    monkeypatch.setattr(step, "fastest_layout", lambda *_: pytest.fail("measured again"))
    run(dataset, tmp_path / "run", resume=True)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["steps"]
    assert state == {"resident": True, "layout": "torch.contiguous_format", "kernels": 0}
