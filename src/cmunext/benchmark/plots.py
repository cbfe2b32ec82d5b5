"""The paper's figures from a grid's files: IoU against cost (2), masks beside the truth (3), training curves with their spread (4).

The same files give the same bytes: no time stamps, no settings of the user's. Figures 2 and 4 are small SVGs; Figure 3 shows
images of the dataset, so a .gitignore keeps it out of repositories.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cmunext.benchmark.gallery import gallery
from cmunext.benchmark.grid import Dataset, Grid
from cmunext.benchmark.results import cells_of, histories_of
from cmunext.benchmark.store import Store
from cmunext.benchmark.tables import rows_of
from cmunext.errors import InputError
from cmunext.image.overlay import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from cmunext.storage import replacing, write_text

PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, (0, 0, 0))
MARKERS, LINE_STYLES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")  # for the networks that come after the palette's end


def write_figures(grid: Grid, out: Path) -> list[Path]:
    """Write `figures/figure{2,4}-DATASET-RECIPE.svg`, and `figure3-DATASET-RECIPE.png` where weights and images are there.

    A figure without a single run is not written. Raises InputError without matplotlib.
    """
    store, written = Store(out), []
    for recipe in grid.recipes:
        for dataset in grid.datasets:
            for number, suffix, draw in ((2, "svg", _costs), (3, "png", gallery), (4, "svg", _curves)):
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
    """Figure 2: IoU of the last epoch, with its interval, against frames per second, GFLOPs and parameters, as far as measured."""
    rows = [row for row in rows_of(grid, store, dataset, recipe) if row.values["last"]]
    device = f"\n{grid.speed_device}" if grid.speed_device else ""
    measured = [
        (name, costs)
        for name, costs in (
            (f"frames per second{device}", [row.fps for row in rows]),
            ("multiply-accumulates (10⁹)", [row.gigaflops for row in rows]),
            ("parameters (10⁶)", [row.parameters for row in rows]),
        )
        if any(cost is not None for cost in costs)
    ]
    if not measured:
        return None
    figure = _figure(3.6 * len(measured) + 1.8, 4)
    every = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, (name, costs) in zip(every, measured, strict=True):
        for row, cost in zip(rows, costs, strict=True):
            value, style = row.values["last"], _style(grid, row.label)
            if cost is None or value is None:
                continue
            ends = [[100 * (value.iou - value.low)], [100 * (value.high - value.iou)]]
            look = {"color": style["color"], "marker": style["marker"]}
            axes.errorbar([cost], [100 * value.iou], yerr=ends, linestyle="none", **look, markersize=6, elinewidth=0.8)
        _logarithmic(axes.xaxis)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    every[0].set_ylabel("IoU of the last epoch (%), bar: 95 % interval")
    handles = [_line(label=row.label, **{**_style(grid, row.label), "linestyle": "none"}) for row in rows]
    _legend(every[-1], handles)
    return _finished(figure, f"{dataset.name}, recipe {recipe}")


def _curves(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> Any:
    """Figure 4: validation IoU by epoch on the official lists, mean over runs, and a band of one standard deviation to either side.

    The deviation is between seeds (root mean square over lists) where every list was trained with two or more, else between runs.
    The legend is in the order of the curves' ends.
    """
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    between = ""
    for label in grid.labels:
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
        mean, style, name = every.mean(0), _style(grid, label), label
        if len(every) > 1:
            between, spread = between or "runs", every.std(0, ddof=1)
            if all(len(curve) > 1 for curve in curves.values()):
                between, spread = "seeds", np.sqrt(np.mean([curve.var(0, ddof=1) for curve in curves.values()], axis=0))
            name = f"{label} (± {spread.mean():.1f})"
            axes.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
        marked = style if len(epochs) < 30 else {**style, "marker": None}
        axes.plot(epochs, mean, **marked, markersize=4, linewidth=1.2, label=name)
    if not axes.lines:
        return None
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation IoU at the network's size (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    handles = sorted(axes.lines, key=lambda line: -line.get_ydata()[-1])
    _legend(axes, handles, handlelength=3)
    spread_of = f"\nband and ± (mean over epochs): standard deviation between {between}" if between else ""
    return _finished(figure, f"{dataset.name}, recipe {recipe}{spread_of}")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finished(figure: Any, title: str) -> Any:
    figure.suptitle(title, fontsize=9)
    return figure


def _style(grid: Grid, label: str) -> dict[str, Any]:
    """How a network is drawn: the same in every figure of a grid, and told apart without its colour too."""
    turn, place = divmod(grid.labels.index(label), len(PALETTE))
    return {
        "color": tuple(part / 255 for part in PALETTE[place]),
        "marker": MARKERS[turn % len(MARKERS)],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
    }


def _legend(axes: Any, handles: Sequence[Any], **look: Any) -> None:
    """Right of the axes, where it hides nothing."""
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False, fontsize=8, **look)


def _line(**look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], markersize=6, **look)


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis with 1, 2, 5, 10, ... written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
