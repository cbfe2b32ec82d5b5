"""The paper's figures from a grid's files: IoU against cost (2), masks beside the truth (3), training curves with their spread (4).

The same files give the same bytes: no time stamps, no settings of the user's. Figures 2 and 4 are small SVGs; Figure 3 shows
images of the dataset, so a .gitignore keeps it out of repositories.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunext.benchmark.cell import Store, grid_networks_trusted
from cmunext.benchmark.grid import Cell, Dataset, Grid
from cmunext.benchmark.results import cells_of, histories_of, scores_of
from cmunext.benchmark.tables import rows_of
from cmunext.errors import InputError
from cmunext.storage import replacing, write_text

EXAMPLES = (0.1, 0.3, 0.5, 0.7, 0.9)  # Figure 3: the cases at these places, from the hardest to the easiest
TRUTH_COLOUR = (0, 158, 115)
LINE_STYLES = ("-", "--", ":", "-.")


def write_figures(grid: Grid, out: Path) -> list[Path]:
    """Write `figures/figure{2,4}-DATASET-RECIPE.svg`, and `figure3-DATASET-RECIPE.png` where weights and images are there.

    A figure without a single run is not written. Raises InputError without matplotlib.
    """
    store, written = Store(out), []
    for recipe in grid.recipes:
        for dataset in grid.datasets:
            for number, suffix, draw in ((2, "svg", _costs), (3, "png", _masks), (4, "svg", _curves)):
                with _drawing():
                    figure = draw(grid, store, dataset, recipe)
                    if figure is None:
                        continue
                    path = out / "figures" / f"figure{number}-{dataset.name}-{recipe}.{suffix}"
                    if number == 3:
                        write_text(path.parent / ".gitignore", "figure3*\n")
                    with replacing(path) as temporary:
                        figure.savefig(temporary, metadata={"Date": None} if suffix == "svg" else {"Software": None})
                    written.append(path)
    return written


@contextmanager
def _drawing() -> Iterator[None]:
    """matplotlib's own defaults, and identifiers in SVGs that do not depend on the moment."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError("figures need matplotlib, which is not installed; run: pip install 'cmunext[train]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "cmunext", "svg.fonttype": "none", "font.size": 9, "savefig.dpi": 150})
        yield


def _costs(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> Any:
    """Figure 2: IoU of the last epoch, with its interval, against frames per second, GFLOPs and parameters."""
    rows = [row for row in rows_of(grid, store, dataset, recipe) if row.values["last"]]
    if not rows:
        return None
    axes_of = (
        ("frames per second", [row.fps for row in rows]),
        ("GFLOPs (multiply-accumulates)", [row.gigaflops for row in rows]),
        ("parameters (millions)", [row.parameters for row in rows]),
    )
    figure = _figure(13, 4.6)
    for place, (name, costs) in enumerate(axes_of, start=1):
        axes = figure.add_subplot(1, 3, place)
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True)):
            value = row.values["last"]
            if cost is None or value is None:
                continue
            ends = [[100 * (value.iou - value.low)], [100 * (value.high - value.iou)]]
            colour = _colour(number)
            axes.errorbar([cost], [100 * value.iou], yerr=ends, fmt="o", color=colour, markersize=4, elinewidth=0.8)
            axes.annotate(row.label, (cost, 100 * value.iou), xytext=(4, 3), textcoords="offset points", fontsize=7)
        if any(cost is not None for cost in costs):
            axes.set_xscale("log")
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_xlabel(name)
        axes.set_ylabel("IoU of the last epoch (%)")
        axes.grid(alpha=0.3)
    return _finished(figure, f"{dataset.name}, recipe {recipe}" + (f"; {grid.speed_device}" if grid.speed_device else ""))


def _curves(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> Any:
    """Figure 4: validation IoU by epoch on the official lists, mean over runs, and a band of one standard deviation to either side.

    The deviation is between seeds (root mean square over lists) where every list was trained with two or more, else between runs.
    """
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    between = "runs"
    for number, label in enumerate(grid.labels):
        cells = [cell for cell in cells_of(grid, dataset, recipe, label) if cell.lists.kind == "official"]
        of_list = {cell.lists.name: histories_of(store, [c for c in cells if c.lists == cell.lists]) for cell in cells}
        histories = [history for several in of_list.values() for history in several]
        if not histories:
            continue
        epochs = sorted(set.intersection(*(set(history) for history in histories)))
        curves = {
            name: 100 * np.array([[one[epoch] for epoch in epochs] for one in several]) for name, several in of_list.items()
        }
        every = np.concatenate([curve for curve in curves.values() if len(curve)])
        mean, style, name = every.mean(0), LINE_STYLES[number // 10 % len(LINE_STYLES)], label
        if len(every) > 1:
            spread = every.std(0, ddof=1)
            if all(len(curve) > 1 for curve in curves.values()):
                between, spread = "seeds", np.sqrt(np.mean([curve.var(0, ddof=1) for curve in curves.values()], axis=0))
            name = f"{label} (± {spread.mean():.1f})"
            axes.fill_between(epochs, mean - spread, mean + spread, color=_colour(number), alpha=0.15, linewidth=0)
        axes.plot(epochs, mean, style, color=_colour(number), linewidth=1.2, marker="." if len(epochs) < 30 else None, label=name)
    if not axes.lines:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation IoU at the network's size (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return _finished(
        figure, f"{dataset.name}, recipe {recipe}; where there are several, ± mean standard deviation between {between}"
    )


def _masks(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> Any:
    """Figure 3: image, truth, and each network's outline on cases from hard to easy; None without weights or images."""
    from cmunext.data.layout import Layout
    from cmunext.image.files import read_image, read_mask
    from cmunext.image.overlay import overlay
    from cmunext.inference.segmenter import Segmenter
    from cmunext.training.run import AVERAGE, LAST

    firsts = [cells[0] for label in grid.labels if (cells := cells_of(grid, dataset, recipe, label))]
    weights = [(cell, store.run(cell) / (AVERAGE if cell.recipe.ema_decay else LAST)) for cell in firsts]
    weights = [(cell, path) for cell, path in weights if path.is_file()]
    if not weights or not (dataset.root / "images").is_dir():
        return None
    cases = _examples(store, [cell for cell, _ in weights])
    if not cases:
        return None
    layout = Layout.open(dataset.root)
    images = [read_image(layout.image(case)) for case in cases]
    truths = [np.stack([read_mask(file) for file in layout.masks(case)]) for case in cases]
    shown: list[tuple[str, list[NDArray[np.uint8]]]] = [
        ("image", images),
        ("truth", [overlay(image, truth, [TRUTH_COLOUR]) for image, truth in zip(images, truths, strict=True)]),
    ]
    for cell, path in weights:
        with grid_networks_trusted(grid):
            segmenter = Segmenter.load(path, backend="torch")
        shown.append((cell.label, [overlay(image, segmenter(image).mask) for image in images]))
    figure = _figure(1.1 * len(shown), 1.2 * len(cases) + 0.4)
    for column, (name, pictures) in enumerate(shown):
        for row, picture in enumerate(pictures):
            axes = figure.add_subplot(len(cases), len(shown), row * len(shown) + column + 1)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=7)
    return _finished(figure, None)


def _examples(store: Store, cells: Sequence[Cell]) -> list[str]:
    """Cases at fixed places between the hardest and the easiest, by the mean IoU of all networks on the first list."""
    scored = [runs[0]["iou"] for cell in cells if (runs := scores_of(store, [cell], "last"))]
    if not scored:
        return []
    shared = sorted(set.intersection(*(set(scores) for scores in scored)))
    ordered = sorted(shared, key=lambda case: (float(np.mean([scores[case] for scores in scored])), case))
    return list(dict.fromkeys(ordered[round(place * (len(ordered) - 1))] for place in EXAMPLES)) if ordered else []


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finished(figure: Any, title: str | None) -> Any:
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](number % 10)
