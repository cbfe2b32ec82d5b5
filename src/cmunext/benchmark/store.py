"""The output folder of a grid: what lies where.

    OUT/runs/CELL/    the training's folder: checkpoint, weights, log (large; a .gitignore keeps it out of repositories)
    OUT/cells/CELL/   config.json, history.csv, best.csv, last.csv, external-NAME.csv: all that tables are made of

A mean of other cells' weights has no epochs: no history.csv, and its last weights are its best.

Every file is written whole or not at all, and `config.json` last, so what is there tells what is missing.
"""

from dataclasses import dataclass
from pathlib import Path

from cmunext.benchmark.grid import Cell

CONFIG, HISTORY, FAILED, STEP = "config.json", "history.csv", "failed.json", "step.json"


@dataclass(frozen=True)
class Store:
    """The output folder of a grid."""

    root: Path

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell's small text files."""
        return self.root / "cells" / cell.identifier

    def run(self, cell: Cell) -> Path:
        """The folder of a cell's training."""
        return self.root / "runs" / cell.identifier

    def last_weights(self, cell: Cell) -> Path:
        """The weights of a cell's last epoch: the average where its recipe keeps one."""
        from cmunext.training.run import AVERAGE, LAST

        return self.run(cell) / (AVERAGE if cell.recipe.ema_decay else LAST)

    def scores(self, cell: Cell) -> dict[str, Path]:
        """Every score table of a cell: "best", "last", and "external-NAME" for official lists."""
        names = ["best", "last"]
        if cell.lists.kind == "official":
            names += [f"external-{external.name}" for external in cell.dataset.external]
        same = {"best": "last"} if cell.mean else {}
        return {name: self.cell(cell) / f"{same.get(name, name)}.csv" for name in names}

    def missing(self, cell: Cell) -> list[Path]:
        """The files that the cell still lacks, none when it is done."""
        wanted = [*self.scores(cell).values(), *([] if cell.mean else [self.cell(cell) / HISTORY]), self.cell(cell) / CONFIG]
        return [path for path in dict.fromkeys(wanted) if not path.is_file()]
