"""A grid of trainings: networks x datasets x lists x seeds x recipes, laid out as cells; `grid_file` reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmunext.data.layout import Layout
from cmunext.training.recipe import Recipe


@dataclass(frozen=True)
class ListPair:
    """Cases to train on and to score.

    Attributes
    ----------
    train, validation : text files of case names.
    clean : those of the validation list without a near duplicate in the training list; None when that list was not made.
    kind : "official" (a published or plain hold-out) or "grouped" (a fold of a cross-validation that keeps clusters together).
    """

    name: str
    train: Path
    validation: Path
    clean: Path | None
    kind: str


@dataclass(frozen=True)
class External:
    """Another dataset, on which the official runs are scored too; nothing was chosen on it.

    Attributes
    ----------
    cases : list of its cases; None: every case.
    """

    name: str
    root: Path
    cases: Path | None

    def names(self, layout: Layout) -> list[str]:
        """The names of its cases, given its folder as `Layout` opens it. Raises what `Layout.read_list` raises."""
        return layout.read_list(self.cases) if self.cases else list(layout.cases)


@dataclass(frozen=True)
class Dataset:
    """A dataset folder with its lists.

    Attributes
    ----------
    groups : CSV file (case, group) whose groups the intervals draw whole; None: each image by itself.
    u_score : the IoUs that score 0 and 1 in the U-Score; None leaves it empty.
    """

    name: str
    root: Path
    licence: str
    lists: tuple[ListPair, ...]
    external: tuple[External, ...]
    groups: Path | None
    u_score: tuple[float, float] | None


@dataclass(frozen=True)
class Cell:
    """One training and its scores: what is trained on what, and everything that decides how. Or the mean of earlier cells' weights.

    Attributes
    ----------
    teachers : the cells whose weights it learns from, which must be done before it.
    start : a file of weights that it starts from, or the cell whose last weights they are, which must be done before it.
    mean : the cells whose last weights are averaged instead of a training, which must be done before it; `recipe` is the last one's then.
    """

    identifier: str
    dataset: Dataset
    lists: ListPair
    label: str
    network: str
    arguments: dict[str, Any] = field(hash=False)
    recipe: Recipe = field(hash=False)
    teachers: tuple["Cell", ...] = ()
    start: "Path | Cell | None" = None
    mean: tuple["Cell", ...] = ()

    @property
    def needed(self) -> tuple["Cell", ...]:
        """The cells whose weights it needs."""
        return (*self.teachers, *self.mean, *([self.start] if isinstance(self.start, Cell) else []))

    @property
    def generation(self) -> int:
        """0 for a cell that needs no other, else one more than those it needs."""
        return 1 + max((cell.generation for cell in self.needed), default=-1)


@dataclass(frozen=True)
class Grid:
    """A grid file, checked, with its cells in a fixed order.

    Attributes
    ----------
    name : of the grid, for headings.
    cells : recipe by recipe, dataset by dataset, network by network, list by list, seed by seed.
    labels : the rows of the tables.
    at : "native" or "network", the size at which masks are compared.
    surface : also measure HD95 and surface Dice.
    threads : CPU threads of one training; 0 shares the machine's among the workers.
    device : "auto", "cpu" or "cuda".
    latency : JSON file of latencies ([{"network", "median_ms", ...}]), from which frames per second come; need not be there.
    speed_device : what those were measured on.
    reference : the label that the others are tested against.
    """

    name: str
    datasets: tuple[Dataset, ...]
    recipes: tuple[str, ...]
    labels: tuple[str, ...]
    networks: Mapping[str, str]
    cells: tuple[Cell, ...]
    at: str
    surface: bool
    threads: int
    device: str
    latency: Path | None
    speed_device: str
    reference: str | None
