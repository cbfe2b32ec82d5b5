"""The rows of `latency` as bars, one a configuration, with a line from the 5th to the 95th percentile."""

from collections.abc import Sequence
from pathlib import Path

from cmunext.benchmark.latency import Row
from cmunext.errors import InputError, UsageError
from cmunext.storage import replacing

SUFFIXES = (".svg", ".png", ".pdf")
COLOURS = {"onnxruntime": "#0072b2", "openvino": "#e69f00", "native": "#009e73", "torch": "#999999"}  # of Okabe and Ito (2008)
FAINT = 0.55  # opacity of what is not float32


def check(path: Path) -> None:
    """Raise UsageError or InputError when `plot` could not write this file, before anything is measured."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a plot is written as {', '.join(SUFFIXES)}; choose one of these suffixes")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("a plot needs matplotlib, which is not installed; run: pip install 'cmunext[train]'") from error


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write the plot, in the format of the suffix. Raises as `check`."""
    check(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "cmunext", "svg.fonttype": "none", "font.size": 9, "savefig.dpi": 150})
        figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            opacity = 1.0 if row.precision == "float32" else FAINT
            axes.barh(place, row.median_ms, color=COLOURS[row.backend], alpha=opacity, height=0.7)
            axes.plot([row.p5_ms, row.p95_ms], [place, place], color="black", linewidth=1)
            axes.annotate(f" {row.median_ms:.1f}", (max(row.p95_ms, row.median_ms), place), va="center")
        labels = [f"{Path(row.network).name}, {row.backend} {row.precision}, {_threads(row.threads)}" for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_xlabel("milliseconds an image (median; line: 5th to 95th percentile)")
        axes.spines[["top", "right"]].set_visible(False)
        with replacing(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
