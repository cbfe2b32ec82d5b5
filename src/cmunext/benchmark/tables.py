"""The paper's Tables 2 and 3 with our numbers beside the published ones, and one of every metric: a pure function of files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cmunext.benchmark.compare import p_text
from cmunext.benchmark.cost import DEFAULT_SIZE, PUBLISHED, count_parameters, paper_count
from cmunext.benchmark.formats import comma_separated, latex, markdown, rounded
from cmunext.benchmark.grid import Dataset, Grid
from cmunext.benchmark.metrics_table import metrics_texts
from cmunext.benchmark.published import ABLATION, PUBLISHED_SCORES
from cmunext.benchmark.results import Value, cells_of, columns_of, frames_per_second, p_values, u_score, value_of
from cmunext.benchmark.store import Store
from cmunext.networks import create, names
from cmunext.storage import write_text


@dataclass(frozen=True)
class Row:
    """A network's row.

    Attributes
    ----------
    label, network : what the row is called, and the network behind it.
    size : height and width of the network's input here, pixels.
    parameters, gigaflops : of the network at 256 x 256 (or the size it is built for), by the counter of the paper's tables;
        None where it cannot be built.
    fps : frames per second on the grid's device, None where it was not measured.
    values : column -> value, None where a training is missing.
    p_value : against the grid's reference, None where it cannot be tested.
    u_score : None where IoU, limits or speed are missing.
    """

    label: str
    network: str
    size: tuple[int, int]
    parameters: float | None
    gigaflops: float | None
    fps: float | None
    values: dict[str, Value | None]
    p_value: float | None
    u_score: float | None


def write_tables(grid: Grid, out: Path) -> list[Path]:
    """Write `tables/table2-DATASET-RECIPE.{md,csv,tex}`, `table3-...` and `metrics-...` for every dataset and recipe of the grid.

    The same files of cells give the same bytes. Raises InputError when a file of a cell is damaged.
    """
    store, written = Store(out), []
    for recipe in grid.recipes:
        for dataset in grid.datasets:
            rows, about = rows_of(grid, store, dataset, recipe), preface(grid, dataset, recipe)
            ladder = [row for network in ABLATION for row in rows if row.network == network]
            texts = {}
            for number, chosen in ((2, rows), (3, ladder)):
                if chosen:
                    title = f"Table {number}: {dataset.name}, recipe {recipe}"
                    header, body = _grid_of_text(dataset, number, chosen)
                    texts[f"table{number}"] = {
                        ".md": markdown(title, about, header, body, _notes(grid, dataset)),
                        ".csv": comma_separated(*_grid_of_numbers(dataset, chosen)),
                        ".tex": latex(title, about, header, body),
                    }
            texts["metrics"] = metrics_texts(grid, store, dataset, recipe, labels_of(grid, recipe), about)
            for stem, of_stem in texts.items():
                for suffix, text in of_stem.items():
                    path = out / "tables" / f"{stem}-{dataset.name}-{recipe}{suffix}"
                    write_text(path, text)
                    written.append(path)
    return written


def labels_of(grid: Grid, recipe: str) -> list[str]:
    """The rows of a recipe's table: the package's networks in the paper's order, then others in the grid's."""
    known, trained = names(), {cell.label for cell in grid.cells if cell.recipe.name == recipe}
    labels = [label for label in grid.labels if label in trained]
    return sorted(labels, key=lambda one: known.index(grid.networks[one]) if grid.networks[one] in known else len(known))


def rows_of(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> list[Row]:
    """The rows of a dataset and recipe, in the order of `labels_of`."""
    speeds, against = frames_per_second(grid.latency), p_values(grid, store, dataset, recipe)
    rows = []
    for label in labels_of(grid, recipe):
        cells = cells_of(grid, dataset, recipe, label)
        network, size = cells[0].network, cells[0].recipe.preprocessing
        parameters, gigaflops = cost_of(network, json.dumps(cells[0].arguments, sort_keys=True))
        values = {column: value_of(grid, store, dataset, recipe, label, column) for column in columns_of(dataset)}
        last, fps = values["last"], speeds.get(network)
        score = None
        if last and fps and parameters and gigaflops and dataset.u_score:
            score = u_score(last.iou, dataset.u_score, parameters, gigaflops, fps)
        shape = (size.height, size.width)
        rows.append(Row(label, network, shape, parameters, gigaflops, fps, values, against.get(label), score))
    return rows


@cache
def cost_of(network: str, arguments: str) -> tuple[float, float] | tuple[None, None]:
    """Parameters in millions, and multiply-accumulates by the paper's counter / 1e9, on one colour image of 256 x 256.

    `arguments` is JSON. Measured by shapes alone; a network that cannot be built so has neither.
    """
    import torch

    try:
        with torch.device("meta"):
            module = create(network, **json.loads(arguments)).eval()
            macs, _ = paper_count(module, torch.zeros(1, 3, *getattr(module, "image_size", DEFAULT_SIZE)))
    except (ValueError, TypeError, RuntimeError):
        return None, None
    return count_parameters(module) / 1e6, macs / 1e9


def _grid_of_numbers(dataset: Dataset, rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Every number of the table in full, shares in [0, 1]."""
    header = ["network", "height", "width", "parameters_millions", "gigaflops", "fps"]
    header += ["published_parameters_millions", "published_gigaflops", "published_iou", "published_f1", "published_fps"]
    parts = ("iou", "low", "high", "f1", "spread", "runs", "images")
    header += [f"{column.replace(' ', '_')}_{part}" for column in columns_of(dataset) for part in parts]
    body = []
    for row in rows:
        cost, scores = PUBLISHED.get(row.network), PUBLISHED_SCORES.get(row.network)
        cells: list[object] = [row.label, *row.size, row.parameters, row.gigaflops, row.fps]
        cells += [cost.parameters_millions, cost.gigaflops] if cost else [None, None]
        cells += [scores.iou / 100, scores.f1 / 100, scores.fps] if scores else [None, None, None]
        for value in row.values.values():
            cells += [getattr(value, part) if value else None for part in parts]
        body.append([*cells, row.p_value, row.u_score])
    return [*header, "p_holm", "u_score"], body


def _grid_of_text(dataset: Dataset, number: int, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    header = ["Network", "Input", "Params (M)", "published", "GFLOPs", "published", "FPS", "published IoU / F1"]
    for column in columns_of(dataset):
        header += [f"{column} IoU [95 %]", f"{column} F1"] if column in ("paper", "last") else [f"{column} IoU [95 %]"]
    header += ["p (Holm)", "U-Score"]
    body = []
    for row in rows:
        cost, scores = PUBLISHED.get(row.network), PUBLISHED_SCORES.get(row.network)
        cells = [f"{ABLATION[row.network]} ({row.label})" if number == 3 else row.label, f"{row.size[0]} x {row.size[1]}"]
        cells += [rounded(row.parameters, 2), f"{cost.parameters_millions:.2f}" if cost else ""]
        cells += [rounded(row.gigaflops, 2), f"{cost.gigaflops:.2f}" if cost else "", rounded(row.fps, 1)]
        cells.append(f"{scores.iou:.2f} / {scores.f1:.2f}" if scores else "")
        for column, value in row.values.items():
            cells.append(_with_interval(value) if value else "")
            if column in ("paper", "last"):
                cells.append(f"{100 * value.f1:.2f}" if value else "")
        cells.append("" if row.p_value is None else p_text(row.p_value))
        cells.append(rounded(row.u_score, 1))
        body.append(cells)
    return header, body


def _with_interval(value: Value) -> str:
    """IoU and its interval in per cent; of one image or group there is none."""
    return f"{100 * value.iou:.2f}" + ("" if math.isnan(value.low) else f" [{100 * value.low:.2f}, {100 * value.high:.2f}]")


def preface(grid: Grid, dataset: Dataset, recipe: str) -> list[str]:
    """What was trained and scored: the lines above a table."""
    cells = [cell for cell in grid.cells if cell.dataset == dataset and cell.recipe.name == recipe]
    parts = [part.recipe.name for part in cells[0].mean] if cells else []
    epochs = sorted({cell.recipe.epochs for cell in cells})
    how = f"the mean of the weights of {', '.join(parts)}" if parts else f"{_counted(epochs, 'epoch', ' or ')} of training"
    seeds, lists = sorted({cell.recipe.seed for cell in cells}), list(dict.fromkeys(cell.lists.name for cell in cells))
    return [
        f"Grid {grid.name}: {how}, lists {', '.join(lists)}, seed "
        f"{', '.join(map(str, seeds))}; masks compared at {grid.at} size. IoU and F1 are means over images, per cent, "
        "with a 95 % bootstrap interval over images; those that share a group or a patient are drawn together.",
    ]


def _notes(grid: Grid, dataset: Dataset) -> list[str]:
    lines = [
        "Params and GFLOPs: of the network at 256 x 256 or the size it is built for, multiply-accumulates by the counter "
        "of the paper's tables. The published columns are of the CMUNeXt paper (mobile-uvit: the authors' companion benchmark) "
        "on BUSI at 256 x 256 after 300 epochs: set beside other data or fewer epochs they are for orientation only.",
        "",
        "paper: weights of the best validation epoch, as the published tables have it. last: the last epoch (the average of weights "
        "where the recipe keeps one). clean: last, without validation images that have a near duplicate in training. grouped: last, "
        "cross-validation that keeps near duplicates together. external: last, on another dataset. An empty cell has no run.",
    ]
    if grid.reference:
        lines += ["", f"p: paired Wilcoxon test of the last column's IoU against {grid.reference}, Holm-corrected over the rows."]
    if grid.latency and grid.latency.is_file() and grid.speed_device:
        lines += ["", f"FPS: {grid.speed_device}."]
    if dataset.u_score:
        lines += ["", f"U-Score: of the last column, IoU {dataset.u_score[0]} counting as 0 and {dataset.u_score[1]} as 1."]
    return lines


def _counted(numbers: Sequence[int], noun: str, joint: str) -> str:
    return f"{joint.join(map(str, numbers))} {noun}{'' if list(numbers) == [1] else 's'}"
