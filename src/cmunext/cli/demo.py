"""`cmunext demo`."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for images, masks, overlays and the contact sheet.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="Phantoms.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first phantom; the others follow.")] = 0,
    weights: Annotated[
        str, typer.Option(help="Name of weights that come along, or a file: .onnx, .safetensors, .pth.")
    ] = "cmunext-s-busi",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")] = False,
) -> None:
    """Segment simulated ultrasound images of which the truth is known, and show how well it went. Needs no data.

    The folder --out (by default ./demo) gets the phantoms with their true masks, the segmentations, pictures of both outlines,
    and a contact sheet. A phantom is easier than a patient: the score shows that the program works, not how well it does in a
    clinic.
    """
    from cmunext.demo import demonstrate
    from cmunext.inference.segmenter import Segmenter

    progress = (lambda entry: print(f"phantom {entry['seed']} done", file=sys.stderr)) if sys.stderr.isatty() else None
    summary = demonstrate(Segmenter.load(weights), out, count, seed, weights, progress)
    if json:
        print(json_module.dumps(summary, ensure_ascii=False))
        return
    _print_table(summary)
    print(f"Truth and prediction side by side: {summary['contact_sheet']}; one by one: {Path(out) / 'compared'}")


def _print_table(summary: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_footer=True)
    mean = f"{summary['mean_iou']:.3f}"
    for title, footer in (("phantom", "mean"), ("lesions found", ""), ("area mm²", ""), ("IoU", mean), ("Dice", "")):
        table.add_column(title, footer, justify="left" if title == "phantom" else "right")
    for entry in summary["phantoms"]:
        area = sum(lesion["area_mm2"] for lesion in entry["lesions"])
        table.add_row(
            str(entry["seed"]), str(len(entry["lesions"])), f"{area:.1f}", f"{entry['iou']:.3f}", f"{entry['dice']:.3f}"
        )
    Console(highlight=False).print(table)
