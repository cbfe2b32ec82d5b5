"""A training in this process, for tests of what it does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cmunext.training.recipe import Recipe
from cmunext.training.run import Reporter, train
from cmunext.training.task import Task


def train_here(
    network: str, recipe: Recipe, dataset: Path, out: Path, on_step: Callable[..., None] = lambda *_: None, **changes
) -> list[str]:
    """Train on the CPU with one thread and give what was said; `on_step` as in `Reporter`, `changes` of the `Task`."""
    said: list[str] = []
    task = Task(dataset, Path("train.txt"), Path("val.txt"), network, recipe, out, {}, device="cpu", threads=1)
    train(replace(task, **changes), Reporter(said.append, lambda _: lambda: None, on_step, lambda _: None))
    return said
