"""A grid file: networks x datasets x lists x seeds x recipes, read from a JSON file and laid out as cells, each one training with its scores.

    {
      "name": "small",
      "datasets": {"busi": {
        "root": "../data/busi",
        "lists": {"1": {"train": "busi_train1.txt", "val": "busi_val1.txt", "clean": "lists/busi_val1_clean.txt"},
                  "fold1": {"train": "lists/fold_train1.txt", "val": "lists/fold_val1.txt", "kind": "grouped"}},
        "groups": "lists/groups.csv",
        "external": {"busbra": {"root": "../data/busbra"}},
        "u_score": [0.5838, 0.7063]}},
      "recipes": {"paper": {"base": "paper", "set": {"epochs": 300}},
                  "taught": {"base": "default", "networks": ["cmunext-s"], "teachers": {"recipe": "paper", "network": "cmunext"}},
                  "tuned": {"base": "default", "networks": ["cmunext-s"], "start": "cmunext-s-other.safetensors"},
                  "again": {"base": "default", "start": {"recipe": "paper"}},
                  "mean": {"mean": ["paper", "again"]}},
      "networks": {"cmunext-s": {}, "cmunext": {}, "swin-unet": {"set": {"size": 224}}},
      "seeds": [41]
    }

Paths are relative to the grid file; lists are sought in the dataset folder too. docs/what-the-numbers-mean.md says which entry gives
which column of the tables. Teachers are the weights of every seed of another recipe on the same lists, or of several such in a list;
`start` is a file to start from, weights by name, or another recipe, whose last weights of the same network, lists and seed are gone on with.
With `mean` nothing is trained: the last weights of those recipes, of the same network, lists and seed, are averaged.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmunext.benchmark.grid import Cell, Dataset, External, Grid, ListPair
from cmunext.errors import InputError, UsageError
from cmunext.inference.named_weights import weight_names, weights_path
from cmunext.storage import read_json
from cmunext.training import recipe as recipes
from cmunext.training.recipe import Recipe

KINDS = ("official", "grouped")
SIZES = ("native", "network")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class _RecipeEntry:
    """A recipe of a grid file: for which networks (None: all), taught by which (recipe, network), started from which file or recipe;
    or (recipe is None) the mean of which recipes."""

    recipe: Recipe | None
    networks: tuple[str, ...] | None
    teachers: tuple[tuple[str, str], ...] = ()
    start: Path | str | None = None
    mean: tuple[str, ...] = ()


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """Read a grid file.

    Raises
    ------
    UsageError : there is no such file, or an entry is missing, unknown, or of the wrong type.
    InputError : the file is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the grid {path} is not a file; give a JSON file that names datasets, recipes, networks and seeds")
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); mend it there") from error
    reader = _Reader(path)
    root = reader.table(content, "the grid")
    datasets = tuple(reader.dataset(name, entry) for name, entry in reader.named(root, "datasets"))
    recipe_of = {name: reader.recipe(name, entry) for name, entry in reader.named(root, "recipes")}
    networks = {name: reader.network(name, entry) for name, entry in reader.named(root, "networks")}
    seeds = root.pop("seeds", None)
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"seeds of {path} is {seeds!r}; give a list of numbers, such as [41]")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds of {path} is {seeds!r}; give each once")
    latency = root.pop("latency", "")
    grid = Grid(
        name=str(root.pop("name", path.parent.name)),
        datasets=datasets,
        recipes=tuple(recipe_of),
        labels=tuple(networks),
        networks={label: network for label, (network, _, _) in networks.items()},
        cells=_cells(path, recipe_of, datasets, networks, seeds),
        at=reader.one_of(root.pop("at", "native"), SIZES, "at"),
        surface=reader.one_of(root.pop("surface", False), (False, True), "surface"),
        threads=reader.count(root.pop("threads", 0), "threads"),
        device=reader.one_of(root.pop("device", "auto"), DEVICES, "device"),
        latency=reader.path(latency) if latency else None,
        speed_device=str(root.pop("speed_device", "")),
        reference=root.pop("reference", None),
    )
    reader.empty(root, "the grid")
    if grid.reference is not None and grid.reference not in tuple(networks):
        raise UsageError(f"reference of {path} is {grid.reference!r}; it must be one of its networks, {', '.join(networks)}")
    identifiers = [cell.identifier for cell in grid.cells]
    if repeated := {one for one in identifiers if identifiers.count(one) > 1}:
        raise UsageError(
            f"{path} has several cells called {sorted(repeated)[0]}; give its datasets, lists and networks other names"
        )
    return grid


def _cells(
    path: Path,
    recipe_of: Mapping[str, _RecipeEntry],
    datasets: tuple[Dataset, ...],
    networks: Mapping[str, tuple[str, dict[str, Any], list[str]]],
    seeds: list[int],
) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for name, entry in recipe_of.items():
        if unknown := sorted({*(entry.networks or ()), *(network for _, network in entry.teachers)} - networks.keys()):
            raise UsageError(
                f"recipes.{name} in {path} names the network {unknown[0]!r}; it must be one of {', '.join(networks)}"
            )
        for dataset in datasets:
            for label in networks if entry.networks is None else entry.networks:
                for pair in dataset.lists:
                    for seed in seeds:
                        made = _cell(dataset, pair, label, *networks[label], recipe=entry.recipe, name=name, seed=seed)
                        teachers = [
                            one for each in entry.teachers for one in _earlier(cells, made, *each, what="teachers", path=path)
                        ]
                        start = entry.start
                        begun = _same(cells, made, start, what="start", path=path) if isinstance(start, str) else start
                        mean = [_same(cells, made, each, what="mean", path=path) for each in entry.mean]
                        recipe = replace(mean[-1].recipe, name=name) if mean else made.recipe
                        cells.append(replace(made, recipe=recipe, teachers=tuple(teachers), start=begun, mean=tuple(mean)))
    return tuple(cells)


def _same(cells: list[Cell], made: Cell, recipe: str, *, what: str, path: Path) -> Cell:
    """The cell of the same network, lists and seed as `made` by another recipe. Raises UsageError without one."""
    return next(
        one for one in _earlier(cells, made, recipe, made.label, what=what, path=path) if one.recipe.seed == made.recipe.seed
    )


def _earlier(cells: list[Cell], made: Cell, recipe: str, label: str, *, what: str, path: Path) -> list[Cell]:
    """The cells of every seed that train the network `label` by that recipe on the lists of `made`. Raises UsageError without any."""
    same = (made.dataset.name, made.lists.name, recipe, label)
    found = [one for one in cells if (one.dataset.name, one.lists.name, one.recipe.name, one.label) == same]
    if not found:
        raise UsageError(
            f"the {what} of recipes.{made.recipe.name} in {path}: no recipe before it gives {label} by recipe {recipe!r}; put that recipe first"
        )
    return found


def _cell(
    dataset: Dataset,
    pair: ListPair,
    label: str,
    network: str,
    arguments: dict[str, Any],
    settings: list[str],
    *,
    recipe: Recipe | None,
    name: str,
    seed: int,
) -> Cell:
    """A cell without those that it needs; without a recipe, one whose recipe is still to come."""
    identifier = "-".join((dataset.name, pair.name, label, name, f"seed{seed}"))
    identifier = "".join(letter if letter.isalnum() or letter in "-+._" else "_" for letter in identifier)
    chosen = recipes.with_settings(recipe, settings) if recipe else Recipe()
    return Cell(identifier, dataset, pair, label, network, arguments, replace(chosen, name=name, seed=seed))


class _Reader:
    """Takes a grid file apart; every refusal names the file and the entry."""

    def __init__(self, path: Path):
        self.file = path

    def path(self, text: Any) -> Path:
        """A path of the file, relative to the file's folder."""
        if not isinstance(text, str) or not text:
            raise UsageError(f"a path in {self.file} is {text!r}; give it as text")
        return Path(os.path.normpath(self.file.parent / text))

    def table(self, entry: Any, what: str) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise UsageError(f"{what} in {self.file} is {entry!r}; it must be a JSON object")
        return dict(entry)

    def named(self, root: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
        entries = self.table(root.pop(key, None), key)
        if not entries:
            raise UsageError(f"{key} of {self.file} is empty; name at least one")
        return [(name, self.table(entry, f"{key}.{name}")) for name, entry in entries.items()]

    def empty(self, rest: dict[str, Any], what: str) -> None:
        if rest:
            raise UsageError(f"{what} in {self.file} has the unknown entry {next(iter(rest))!r}; take it out")

    def one_of(self, value: Any, known: tuple[Any, ...], what: str) -> Any:
        if value not in known or type(value) is not type(known[0]):
            choices = [one if isinstance(one, str) else json.dumps(one) for one in known]
            raise UsageError(f"{what} in {self.file} is {value!r}; choose one of {', '.join(choices)}")
        return value

    def count(self, value: Any, what: str) -> int:
        if type(value) is not int or value < 0:
            raise UsageError(f"{what} in {self.file} is {value!r}; give a whole number, 0 for as many as fit")
        return value

    def settings(self, entry: dict[str, Any], what: str) -> list[str]:
        chosen = self.table(entry.pop("set", {}), f"{what}.set")
        for key, instead in (("seed", "the grid's `seeds`"), ("name", "the recipe's name in the grid")):
            if key in chosen:
                raise UsageError(f"{what}.set in {self.file} has {key}, which is not set here; give it as {instead}")
        return [f"{key}={json.dumps(value)}" for key, value in chosen.items()]

    def dataset(self, name: str, entry: dict[str, Any]) -> Dataset:
        root = self.path(entry.pop("root", None))
        lists = tuple(self.pair(pair, one, root) for pair, one in self.named(entry, "lists"))
        external = self.table(entry.pop("external", {}), f"datasets.{name}.external")
        groups, limits = entry.pop("groups", None), entry.pop("u_score", None)
        if limits is not None:
            numbers = isinstance(limits, list) and len(limits) == 2 and all(type(one) in (int, float) for one in limits)
            if not (numbers and 0 <= limits[0] < limits[1] <= 1):
                raise UsageError(
                    f"u_score of {name} in {self.file} is {limits!r}; give two rising IoUs, such as [0.5838, 0.7063]"
                )
        dataset = Dataset(
            name,
            root,
            str(entry.pop("licence", "")),
            lists,
            tuple(self.external(other, self.table(one, other)) for other, one in external.items()),
            self.path(groups) if groups else None,
            (float(limits[0]), float(limits[1])) if limits else None,
        )
        self.empty(entry, f"datasets.{name}")
        return dataset

    def pair(self, name: str, entry: dict[str, Any], root: Path) -> ListPair:
        train, validation = (self.list_file(entry.pop(part, None), root) for part in ("train", "val"))
        clean = entry.pop("clean", None)
        kind = self.one_of(entry.pop("kind", KINDS[0]), KINDS, f"the kind of list {name}")
        self.empty(entry, f"the list {name}")
        return ListPair(name, train, validation, self.list_file(clean, root) if clean else None, kind)

    def list_file(self, text: Any, root: Path) -> Path:
        """A list beside the grid file, else in the dataset folder."""
        beside = self.path(text)
        return beside if beside.is_file() else root / text

    def external(self, name: str, entry: dict[str, Any]) -> External:
        root = self.path(entry.pop("root", None))
        chosen = entry.pop("list", None)
        external = External(name, root, self.list_file(chosen, root) if chosen else None)
        self.empty(entry, f"external.{name}")
        return external

    def recipe(self, name: str, entry: dict[str, Any]) -> _RecipeEntry:
        only = entry.pop("networks", None)
        if only is not None and not (isinstance(only, list) and only and all(isinstance(one, str) for one in only)):
            raise UsageError(f"networks of recipes.{name} in {self.file} is {only!r}; give a list of the grid's networks")
        networks = tuple(only) if only else None
        if "mean" in entry:
            mean = entry.pop("mean")
            self.empty(entry, f"recipes.{name}, a mean of others,")
            if (
                not isinstance(mean, list)
                or len(mean) < 2
                or not all(isinstance(one, str) for one in mean)
                or len(set(mean)) < len(mean)
            ):
                raise UsageError(
                    f"mean of recipes.{name} in {self.file} is {mean!r}; give two or more recipes of the grid, each once"
                )
            return _RecipeEntry(None, networks, mean=tuple(mean))
        base = entry.pop("base", "default")
        settings = self.settings(entry, f"recipes.{name}")
        taught, start = (entry.pop(key, None) for key in ("teachers", "start"))
        self.empty(entry, f"recipes.{name}")
        teachers = [] if taught is None else taught if isinstance(taught, list) else [taught]
        for one in teachers:
            if not isinstance(one, dict) or one.keys() != {"recipe", "network"}:
                raise UsageError(
                    f"teachers of recipes.{name} in {self.file} has {one!r}; give a recipe and a network of the grid, or a list of such"
                )
        by = tuple((str(one["recipe"]), str(one["network"])) for one in teachers)
        if taught == [] or len(set(by)) < len(by):
            raise UsageError(f"teachers of recipes.{name} in {self.file} is {taught!r}; give at least one, and each once")
        bundled = isinstance(base, str) and base in recipes.RECIPES
        chosen = recipes.with_settings(recipes.named(base if bundled else self.path(base)), settings)
        return _RecipeEntry(chosen, networks, by, self.start(name, start) if start is not None else None)

    def start(self, name: str, start: Any) -> Path | str:
        """A file to start from, or weights by name; or the name of a recipe to go on from."""
        if isinstance(start, str) and start in weight_names(".safetensors"):
            return weights_path(start, ".safetensors")
        if not isinstance(start, dict):
            return self.path(start)
        if start.keys() != {"recipe"}:
            raise UsageError(f"the start of recipes.{name} in {self.file} is {start!r}; give a file, or a recipe of the grid")
        return str(start["recipe"])

    def network(self, label: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
        network = str(entry.pop("network", label))
        arguments = self.table(entry.pop("arguments", {}), f"networks.{label}.arguments")
        settings = self.settings(entry, f"networks.{label}")
        self.empty(entry, f"networks.{label}")
        return network, arguments, settings
