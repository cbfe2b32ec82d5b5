"""`cmunext latency`."""

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmunext.benchmark.latency import Row


def latency(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WEIGHTS|NETWORK]...",
            help="Weights files, names of weights that come along, or names of networks (random weights); default: those of the package.",
        ),
    ] = None,
    backends: Annotated[
        str | None, typer.Option(help="Of onnxruntime,openvino,native,torch; default: what is there, native compiled first.")
    ] = None,
    precisions: Annotated[str | None, typer.Option(help="Of float32,bfloat16; default: what each backend runs in.")] = None,
    threads: Annotated[str, typer.Option(help="CPU threads: one number, or several with commas.")] = "1",
    images: Annotated[
        list[str] | None, typer.Option(help="Images, or folders of them, to compare masks on; default: simulated ones.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Timed images of each configuration.")] = 40,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the times as .svg, .png or .pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON document on stdout.")] = False,
) -> None:
    """Measure how long an image takes on this machine, and whether the answer stays the same.

    Every combination of network, backend, precision and number of threads is a process of its own; they take turns in one run, so
    that ratios hold on a busy machine. Printed are the median, 5th and 95th percentile in milliseconds, the time to start, the
    memory and the file's size, and against PyTorch in float32 the largest difference of logits and the mean IoU of the masks.
    """
    from dataclasses import asdict

    from cmunext.benchmark import latency_plot
    from cmunext.benchmark.latency import measure
    from cmunext.image.files import find_images
    from cmunext.inference.named_weights import bundled_names

    if plot is not None:
        latency_plot.check(plot)
    chosen = networks or list(bundled_names()) or ["cmunext-s"]
    progress = (lambda text: print(text, file=sys.stderr)) if sys.stderr.isatty() else (lambda text: None)
    rows, troubles = measure(
        chosen,
        _words(backends),
        _words(precisions),
        _numbers(threads),
        find_images(images or []),
        count,
        progress,
    )
    for trouble in troubles:
        print(f"error: {trouble}", file=sys.stderr)
    if json:
        print(json_module.dumps([asdict(row) for row in rows], ensure_ascii=False))
    elif rows:
        _print_table(rows)
    if plot is not None and rows:
        latency_plot.plot(rows, plot)
    if troubles or not rows:
        raise typer.Exit(1)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    from cmunext.errors import UsageError

    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--threads is {text!r}; give whole numbers, such as 1 or 1,2") from None
    return numbers


def _print_table(rows: "list[Row]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from cmunext.cli.console import table_console

    table = Table(box=SIMPLE_HEAD)
    table.add_column("network", overflow="fold")
    table.add_column("backend")
    titles = ("precision", "threads", "ms", "5 %", "95 %", "images/s", "start ms", "memory MB", "file MB", "logits differ", "IoU")
    for title in titles:
        table.add_column(title, justify="left" if title == "precision" else "right", no_wrap=True)
    for row in rows:
        memory = "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}"
        table.add_row(
            Text(Path(row.network).name),
            row.backend,
            row.precision,
            str(row.threads),
            f"{row.median_ms:.1f}",
            f"{row.p5_ms:.1f}",
            f"{row.p95_ms:.1f}",
            f"{row.images_per_second:.1f}",
            f"{row.start_up_ms:.0f}",
            memory,
            f"{row.file_bytes / 1e6:.2f}",
            f"{row.max_abs_diff:.1e}",
            f"{row.mask_iou:.4f}",
        )
    table_console(150).print(table)
    references = sorted({row.reference for row in rows})
    print(f"ms: median over the images. Compared with {' or '.join(references)}, logits by the largest difference.")
