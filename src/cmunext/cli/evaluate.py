"""`cmunext evaluate`: score weights on a list of cases."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cmunext.benchmark.scores import Evaluation

SHOWN = 10  # failures on the terminal; --json has them all


def evaluate(
    weights: Annotated[str, typer.Argument(help="Bundled weights by name, or a file: .onnx, .safetensors.", show_default=False)],
    dataset: Annotated[Path, typer.Argument(help="The dataset folder: images/ and masks/0/.", show_default=False)],
    list_: Annotated[
        Path, typer.Option("--list", help="List of case names, a name a line; sought in DATASET too.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="CSV file to write, one row a case.", show_default=False)] = None,
    at: Annotated[
        str,
        typer.Option(help="Size of comparison: native (the image's own) or network (the truth is resized, as the paper does)."),
    ] = "native",
    backend: Annotated[str, typer.Option(help="auto, onnxruntime or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    surface: Annotated[
        bool, typer.Option("--surface", help="Also HD95 and surface Dice, in pixels at the size of comparison.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="Of surface Dice, pixels.")] = 2.0,
    group: Annotated[
        str,
        typer.Option(
            help="What the intervals draw whole: none (each image by itself), duplicates, a column of cases.csv such as patient, "
            "or a CSV file with the columns case and group; auto is patient where cases.csv has it, else none."
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False,
) -> None:
    """Score weights on the cases of a list: mean over images with a 95 % interval, and pooled over all pixels.

    IoU, Dice, sensitivity, precision, specificity, accuracy, F1 and calibration. Exit code 1 when a case could not be measured;
    the others are done.
    """
    from cmunext.benchmark.evaluate import evaluate as measure
    from cmunext.data.layout import Layout
    from cmunext.data.split import groups_of
    from cmunext.inference.segmenter import Segmenter

    layout = Layout.open(dataset)
    list_file = layout.find_list(list_)
    names = layout.read_list(list_file)
    _check_out(out, weights, list_file, dataset)
    grouped_by, groups = groups_of(layout, names, group)
    segmenter = Segmenter.load(weights, backend=backend, device=device)
    evaluation = measure(segmenter, layout, names, at=at, surface=surface, tolerance=tolerance, track=_track)  # type: ignore[arg-type]
    if out is not None:
        evaluation.write(out)
    summary = evaluation.summary([groups[case] for case in evaluation.cases])
    summary["intervals"] = {"group": grouped_by, **summary["intervals"]}
    document = {
        "weights": {
            "source": weights,
            "sha256": _sha256(Path(weights)),
            "network": segmenter.metadata.network,
            "backend": segmenter.backend.name,
            "precision": segmenter.backend.precision,
        },
        "dataset": str(dataset),
        "list": {"file": str(list_file), "sha256": _sha256(list_file), "cases": len(names)},
        "at": at,
        "scores": None if out is None else str(out),
        **summary,
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(document, evaluation)
    for failure in summary["failures"][:SHOWN]:
        typer.echo(f"not measured: {failure['case']}: {failure['error']}", err=True)
    if len(summary["failures"]) > SHOWN:
        typer.echo(f"and {len(summary['failures']) - SHOWN} more", err=True)
    if summary["failures"]:
        raise typer.Exit(1)


def _check_out(out: Path | None, weights: str, list_file: Path, dataset: Path) -> None:
    """Refuse an output that would destroy an input or cannot be written, before the work rather than after it."""
    from cmunext.errors import InputError, UsageError

    if out is None:
        return
    if out.is_dir():
        raise UsageError(f"--out is the folder {out}; give the name of a file, such as {out / 'scores.csv'}")
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--out is {out}, and {folder} is not a folder that can be written to; choose another")
    for what, path in (("weights", Path(weights)), ("list", list_file), ("dataset's table", dataset / "cases.csv")):
        if out.exists() and path.exists() and out.samefile(path):
            raise UsageError(f"--out is {out}, the {what} itself; give another name, such as scores.csv")


def _track(names: Sequence[str]) -> Iterable[str]:
    """A bar on stderr while a terminal looks on."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(names, "measuring", console=console, transient=True, disable=not console.is_terminal)


def _print(document: dict[str, Any], evaluation: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    per_image, pooled, intervals = document["per_image"], document["pooled"], document["intervals"]
    drawn = "images" if intervals["drawn"] == document["n"] else f"{intervals['drawn']} groups ({intervals['group']})"
    table = Table(box=None, pad_edge=False)
    for column in ("score", "mean over images", "95 % interval", "pooled", "images"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, value in per_image.items():
        low_high = intervals.get(name)
        digits = 1 if name == "hd95" else 4
        table.add_row(
            name.replace("_", " "),
            _number(value, digits),
            f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "",
            _number(pooled.get(name, document["ece_pooled"] if name == "ece" else None), digits),
            str(document["per_image_over"][name]),
        )
    print(
        f"{document['weights']['source']} ({document['weights']['backend']}) on {document['list']['file']}, {evaluation.at} size"
    )
    Console(highlight=False, soft_wrap=True).print(table)
    if len(evaluation.classes) > 1:
        print(f"means over the classes {', '.join(evaluation.classes)}")
        for label, one in zip(evaluation.classes, document["classes"], strict=True):
            print(f"  {label}: IoU {_number(one['per_image']['iou'], 4)}, Dice {_number(one['per_image']['dice'], 4)}")
    if "hd95_median" in document:
        print(f"median HD95, missed lesions included: {_number(document['hd95_median'], 1)} px")
    print(f"{document['n']} images, {100 * document['share_iou_below_0.1']:.1f} % under IoU 0.1; intervals drawn over {drawn}")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _sha256(path: Path) -> str | None:
    """Of a file's content; None for bundled weights, which are known by their name."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
