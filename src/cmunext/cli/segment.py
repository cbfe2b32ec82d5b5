"""`cmunext segment`."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def segment(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, folders of images, or glob patterns.")],
    weights: Annotated[
        str, typer.Option(help="Name of bundled weights, or a file: .onnx, .safetensors, .pth.")
    ] = "cmunext-s-busi",
    out: Annotated[Path, typer.Option(help="Folder for masks, overlays and segmentation.json.")] = Path("segmentation"),
    backend: Annotated[str, typer.Option(help="auto, onnxruntime or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to the runtime.")] = 0,
    spacing: Annotated[
        str | None, typer.Option(metavar="MM[,MM]", help="Millimetres a pixel; two values mean down,across. Adds measures in mm.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that this program did not write.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the records as one JSON document on stdout.")] = False,
) -> None:
    """Outline the lesions in images, and measure them.

    For each image NAME, the folder --out (by default ./segmentation) gets NAME_mask.png, NAME_overlay.png and an entry in
    segmentation.json: area, box, centroid, axes, perimeter and mean probability of each lesion. Running it again replaces its own
    results and nothing else. A file that cannot be read is reported, the others are done, and the exit code is 1.
    """
    from cmunext.image.files import find_images
    from cmunext.inference.results import segment_files
    from cmunext.inference.segmenter import Segmenter

    steps = _spacing(spacing)
    sources = find_images(paths)
    segmenter = Segmenter.load(weights, backend, device, threads or None)
    results = segment_files(segmenter, sources, out, steps, overwrite, weights)
    records: list[dict[str, Any]] = []
    for result in _with_progress(results, len(sources)):
        if result.record:
            records.append(result.record)
        else:
            print(f"error: {result.error}", file=sys.stderr)
    if json:
        print(json_module.dumps(records, ensure_ascii=False))
    elif records:
        _print_table(records)
        print(f"{len(records)} of {len(sources)} done; masks, overlays and segmentation.json are in {out}. Not a medical device.")
    if len(records) < len(sources):
        raise typer.Exit(1)


def _spacing(text: str | None) -> tuple[float, float] | None:
    from cmunext.errors import UsageError

    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 < value < float("inf") for value in values):
        raise UsageError(f"--spacing is {text!r}; give millimetres a pixel as one positive number, or two: down,across")
    return values[0], values[-1]


def _with_progress(results, total: int):
    if total == 1 or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "segmenting", total=total, console=Console(stderr=True))


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    millimetres = records[0]["spacing_mm"] is not None
    unit, area, suffix = ("mm", "mm²", "_mm") if millimetres else ("px", "px", "")
    several = len(records[0]["classes"]) > 1
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    columns = (
        "lesion",
        *(("class",) if several else ()),
        f"area {area}",
        f"axes {unit}",
        f"perimeter {unit}",
        "centre x, y px",
        "probability",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for record in records:
        name = Text(Path(record["source"]).name)
        if not record["lesions"]:
            table.add_row(name, "none")
        for number, lesion in enumerate(record["lesions"], 1):
            table.add_row(
                name if number == 1 else "",
                str(number),
                *((Text(record["classes"][lesion["class_index"]]),) if several else ()),
                f"{lesion['area_mm2']:.1f}" if millimetres else str(lesion["area"]),
                f"{lesion['major_axis' + suffix]:.1f} x {lesion['minor_axis' + suffix]:.1f}",
                f"{lesion['perimeter' + suffix]:.1f}",
                f"{lesion['centroid'][0]:.0f}, {lesion['centroid'][1]:.0f}",
                f"{lesion['mean_probability']:.2f}",
            )
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 120  # a pipe has no width of its own
    console.print(table)
