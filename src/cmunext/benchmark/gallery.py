"""Figure 3 of a grid: image, truth, and what each network outlines, on cases from hard to easy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmunext.benchmark.cell import grid_networks_trusted
from cmunext.benchmark.grid import Dataset, Grid
from cmunext.benchmark.panels import legend, panels
from cmunext.benchmark.results import cells_of, scores_of
from cmunext.benchmark.store import Store
from cmunext.data.layout import Layout
from cmunext.inference.segmenter import Segmenter

EXAMPLES = (0.1, 0.3, 0.5, 0.7, 0.9)  # the cases at these places, from the hardest to the easiest
COLUMN, GAP, LINE = 1.4, 0.06, 0.2  # inches: width of a picture, space between two, height of a line of text
TALLEST = 1.3  # height of a picture over its width, at most
DOTS = 150  # an inch
NAME_LENGTH = 22  # of a case's name under its image


def gallery(grid: Grid, store: Store, dataset: Dataset, recipe: str) -> Any:
    """The figure, with the last epoch's IoU under each network's outline (that of the first list); None without weights or images."""
    firsts = [cells[0] for label in grid.labels if (cells := cells_of(grid, dataset, recipe, label))]
    weights = [(cell, store.last_weights(cell)) for cell in firsts]
    weights = [(cell, path) for cell, path in weights if path.is_file()]
    ious = {cell.label: runs[0]["iou"] for cell, _ in weights if (runs := scores_of(store, [cell], "last"))}
    cases = examples(list(ious.values()))
    if not cases or not (dataset.root / "images").is_dir():
        return None
    layout, box = Layout.open(dataset.root), (round(COLUMN * DOTS), round(COLUMN * TALLEST * DOTS))
    columns: list[tuple[str, list[Any], list[str]]] = []  # heading, pictures, lines under them
    colours: list[Any] = []
    for cell, path in weights:
        with grid_networks_trusted(grid):
            segmenter = Segmenter.load(path, backend="torch")
        drawn = [panels(segmenter, layout, case, box) for case in cases]
        if not columns:
            names = [case if len(case) <= NAME_LENGTH else f"{case[: NAME_LENGTH - 3]}..." for case in cases]
            columns += [
                ("image", [three[0] for three in drawn], names),
                ("truth", [three[1] for three in drawn], [""] * len(cases)),
            ]
            colours = legend(segmenter.metadata.classes)
        scored = ious.get(cell.label, {})
        under = [f"IoU {scored[case]:.2f}" if case in scored else "" for case in cases]
        columns.append((cell.label, [three[2] for three in drawn], under))
    return _laid_out(columns, colours)


def examples(scored: Sequence[Mapping[str, float]]) -> list[str]:
    """Cases at fixed places between the hardest and the easiest, by the mean IoU of all networks; empty without a common case."""
    shared = sorted(set.intersection(*(set(scores) for scores in scored))) if scored else []
    ordered = sorted(shared, key=lambda case: (float(np.mean([scores[case] for scores in scored])), case))
    return list(dict.fromkeys(ordered[round(place * (len(ordered) - 1))] for place in EXAMPLES)) if ordered else []


def _laid_out(columns: Sequence[tuple[str, list[Any], list[str]]], colours: Sequence[tuple[str, Any]]) -> Any:
    """Pictures at one dot a pixel, in rows as high as their pictures, a heading over each column and the legend at the foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [pictures[0].shape[0] / DOTS for pictures in zip(*(column[1] for column in columns), strict=True)]
    width = GAP + len(columns) * (COLUMN + GAP)
    height = LINE + sum(heights) + len(heights) * (LINE + GAP) + 1.5 * LINE
    figure = Figure(figsize=(width, height), dpi=DOTS)
    FigureCanvasAgg(figure)
    for number, (heading, pictures, lines) in enumerate(columns):
        left, top = GAP + number * (COLUMN + GAP), height - LINE
        figure.text((left + COLUMN / 2) / width, (top + LINE / 3) / height, heading, ha="center", fontsize=8)
        for picture, line in zip(pictures, lines, strict=True):
            rows, across = (length / DOTS for length in picture.shape[:2])
            place = (left + (COLUMN - across) / 2, top - rows, across, rows)
            axes = figure.add_axes((place[0] / width, place[1] / height, across / width, rows / height))
            axes.imshow(picture, interpolation="none", aspect="auto")
            axes.set_axis_off()
            figure.text((left + COLUMN / 2) / width, (top - rows - 0.7 * LINE) / height, line, ha="center", fontsize=7)
            top -= rows + LINE + GAP
    patches = [Patch(color=tuple(part / 255 for part in colour), label=text) for text, colour in colours]
    figure.legend(handles=patches, loc="lower left", ncols=len(patches), frameon=False, fontsize=7, borderaxespad=0)
    return figure
