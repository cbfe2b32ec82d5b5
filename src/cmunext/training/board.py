"""The history of a run for TensorBoard."""

from contextlib import suppress
from pathlib import Path

from cmunext.training import checkpoint

FOLDER = "tensorboard"


class Board:
    """TensorBoard scalars of the run, where tensorboard is installed."""

    def __init__(self, run: Path, wanted: bool):
        self.writer = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            done = checkpoint.epochs_written(run)
            self.writer = SummaryWriter(str(run / FOLDER), purge_step=done + 1 if done else None)

    def add(self, row: dict) -> None:
        if self.writer is not None:
            with suppress(OSError):  # the disk is full: a picture less, and the training says so itself
                for name, value in row.items():
                    if name != "epoch" and value is not None:
                        self.writer.add_scalar(name, value, row["epoch"])

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()
