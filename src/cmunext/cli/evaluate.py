"""`cmunext evaluate`: score weights, or a folder of masks, on a list of cases."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from cmunext.benchmark.predicted import MaskFolder
    from cmunext.benchmark.scores import Evaluation
    from cmunext.inference.segmenter import Segmenter

SHOWN = 10  # failures on the terminal; --json has them all
SHOWN_WORST = 5  # of the worst cases on the terminal


def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            help="Bundled weights by name, or a file: .onnx, .safetensors; or a folder of masks that any program made, called as the "
            "images are, NAME.png (of several classes 0/NAME.png, 1/NAME.png, ...), or as `segment` writes them.",
            show_default=False,
        ),
    ],
    dataset: Annotated[Path, typer.Argument(help="The dataset folder: images/ and masks/0/.", show_default=False)],
    list_: Annotated[
        Path | None,
        typer.Option(
            "--list", help="List of case names, a name a line; sought in DATASET too. Every case without it.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write, one row a case.", show_default=False)] = None,
    at: Annotated[
        str,
        typer.Option(help="Size of comparison: native (the image's own) or network (the truth is resized, as the paper does)."),
    ] = "native",
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino, native or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, or with openvino and native bfloat16; by default what the file states, which is float32 but for INT8.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the network; 0 leaves it to the runtime.")] = 0,
    surface: Annotated[
        bool, typer.Option("--surface", help="Also HD95 and surface Dice, in pixels at the size of comparison.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="Of surface Dice, pixels.")] = 2.0,
    group: Annotated[
        str,
        typer.Option(
            help="What the intervals draw whole: none (each image by itself), duplicates, a column of cases.csv such as patient, "
            "or a CSV file with the columns case and group (groups.csv of audit); auto is patient where cases.csv has it, else none."
        ),
    ] = "auto",
    clean: Annotated[
        Path | None,
        typer.Option(
            help="Also score the cases of this list apart: those without a near duplicate in training, NAME_clean.txt of audit.",
            show_default=False,
        ),
    ] = None,
    strata: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also score by this column of cases.csv; may be repeated.", show_default=False),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the cases with the lowest IoU to name and draw.")] = 20,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write index.html and contact sheets of the worst cases: image, truth, prediction; and the reliability diagram.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False,
) -> None:
    """Score weights, or masks that are there, on the cases of a list: mean over images with a 95 % interval, and pooled over all pixels.

    IoU, Dice, sensitivity, precision, specificity, accuracy, F1 and calibration; strata by lesion size (under 3 %, 3 to 10 %, 10 % and
    more of the image) and, where names or cases.csv tell it, by class; the worst cases. Exit code 1 when a case could not be measured;
    the others are done.
    """
    from cmunext.benchmark.evaluate import evaluate as measure
    from cmunext.benchmark.predicted import MaskFolder
    from cmunext.benchmark.strata import cleanness_of, columns_of, standard_strata, strata_of
    from cmunext.benchmark.worst import check_folder, worst_of, write_worst
    from cmunext.cli.console import progress
    from cmunext.data.layout import Layout
    from cmunext.data.split import groups_of
    from cmunext.errors import UsageError
    from cmunext.inference.named_weights import weight_names
    from cmunext.inference.segmenter import Segmenter

    layout = Layout.open(dataset)
    list_file = None if list_ is None else layout.find_list(list_)
    names = layout.cases if list_file is None else layout.read_list(list_file)
    _check_out(out, weights, list_file, dataset)
    if pictures is not None:
        check_folder(pictures)
    asked: dict[str, dict[str, str]] = columns_of(layout.root, names, strata or ())
    if clean is not None:
        asked["clean"] = cleanness_of(names, layout.read_list(clean))
    grouped_by, groups = groups_of(layout, names, group)
    source: Segmenter | MaskFolder
    if weights not in weight_names() and Path(weights).is_dir():
        if (backend, device, precision, threads) != ("auto", "cpu", None, 0):
            raise UsageError(
                f"{weights} is a folder of masks, and no network runs; leave out --backend, --device, --precision and --threads"
            )
        source = MaskFolder.open(weights, layout.class_names)
    else:
        source = Segmenter.load(weights, backend, device, threads or None, precision)
        if precision is None and source.backend.precision == "bfloat16":  # auto's choice, on which no score should rest
            source = Segmenter.load(weights, backend, device, threads or None, "float32")
    evaluation = measure(source, layout, names, at=at, surface=surface, tolerance=tolerance, track=progress("measuring"))  # type: ignore[arg-type]
    if out is not None:
        evaluation.write(out)
        if not as_json:
            typer.echo(f"written: {out}", err=True)
    drawn = [groups[case] for case in evaluation.cases]
    summary = evaluation.summary(drawn)
    summary["intervals"] = {"group": grouped_by, **summary["intervals"]}
    stratifications = standard_strata(evaluation)
    stratifications |= {name: [of_case[case] for case in evaluation.cases] for name, of_case in asked.items()}
    document = {
        **_described(weights, source),
        "dataset": str(dataset),
        "list": {
            "file": None if list_file is None else str(list_file),
            "sha256": None if list_file is None else _sha256(list_file),
            "cases": len(names),
        },
        "at": at,
        "scores": None if out is None else str(out),
        **summary,
        "strata": strata_of(evaluation, stratifications, drawn),
        "worst": worst_of(evaluation, worst),
    }
    if pictures is not None and document["worst"]:
        page = write_worst(
            pictures, source, layout, evaluation, document["worst"], _what(document, evaluation), progress("drawing")
        )
        typer.echo(f"written: {page}", err=True)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(document, evaluation)
    if learnt := summary["learnt_from"]:
        typer.echo(
            f"warning: the weights learnt from {learnt} of these {summary['n']} images; on those the scores say nothing", err=True
        )
    for failure in summary["failures"][:SHOWN]:
        typer.echo(f"not measured: {failure['case']}: {failure['error']}", err=True)
    if len(summary["failures"]) > SHOWN:
        typer.echo(f"and {len(summary['failures']) - SHOWN} more", err=True)
    if summary["failures"]:
        raise typer.Exit(1)


def _check_out(out: Path | None, weights: str, list_file: Path | None, dataset: Path) -> None:
    """Refuse an output that would destroy an input or cannot be written, before the work rather than after it."""
    from cmunext.benchmark.scores import is_scores
    from cmunext.errors import InputError, UsageError

    if out is None:
        return
    if out.is_dir():
        raise UsageError(f"--out is the folder {out}; give the name of a file, such as {out / 'scores.csv'}")
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--out is {out}, and {folder} is not a folder that can be written to; choose another")
    for what, path in (("weights", Path(weights)), ("list", list_file), ("dataset's table", dataset / "cases.csv")):
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise UsageError(f"--out is {out}, the {what} itself; give another name, such as scores.csv")
    if out.exists() and not is_scores(out):
        raise UsageError(f"--out is {out}, which is there and is no score table; give another name, such as scores.csv")
    if out.suffix.lower() in (".xlsx", ".xls", ".ods", ".json"):
        raise UsageError(f"--out is {out}, and scores are written as CSV; name it {out.with_suffix('.csv').name}")


def _what(document: dict[str, Any], evaluation: "Evaluation") -> str:
    cases = document["list"]["file"] or f"every case of {document['dataset']}"
    if masks := document.get("masks"):
        return f"the masks in {masks['source']} on {cases}, {evaluation.at} size"
    weights = document["weights"]
    return f"{weights['source']} ({weights['backend']}, {weights['precision']}) on {cases}, {evaluation.at} size"


def _described(given: str, source: "Segmenter | MaskFolder") -> dict[str, dict[str, str | None]]:
    from cmunext.benchmark.predicted import MaskFolder

    if isinstance(source, MaskFolder):
        return {"masks": {"source": given}}
    return {
        "weights": {
            "source": given,
            "sha256": _sha256(Path(given)),
            "network": source.metadata.network,
            "backend": source.backend.name,
            "precision": source.backend.precision,
        }
    }


def _print(document: dict[str, Any], evaluation: "Evaluation") -> None:
    from cmunext.cli.console import table_console

    console = table_console(160, soft_wrap=True)
    several = len(evaluation.classes) > 1
    counted = "masks" if several else "images"  # an image has a mask of each class
    print(_what(document, evaluation))
    console.print(_scores_table(document, counted))
    if several:
        print(f"means over the classes {', '.join(evaluation.classes)}")
        for label, one in zip(evaluation.classes, document["classes"], strict=True):
            print(f"  {label}: IoU {_number(one['per_image']['iou'], 4)}, Dice {_number(one['per_image']['dice'], 4)}")
    print()
    console.print(_strata_table(document))
    print()
    if "hd95_median" in document:
        print(f"median HD95, missed lesions included: {_number(document['hd95_median'], 1)} px")
    if document["worst"]:
        worst = [f"{one['case']} {one['iou']:.2f}" for one in document["worst"][:SHOWN_WORST]]
        print(f"lowest IoU: {', '.join(worst)}")
    intervals, empty = document["intervals"], document["empty"]
    without = f"{empty['truth']} masks" if several else str(empty["truth"])
    drawn = "images" if intervals["drawn"] == document["n"] else f"{intervals['drawn']} groups ({intervals['group']})"
    print(
        f"{document['n']} images, {100 * document['share_iou_below_0.1']:.1f} % under IoU 0.1; nothing to find in {without}, "
        f"nothing found in {empty['prediction']}; intervals drawn over {drawn}"
    )


def _scores_table(document: dict[str, Any], counted: str) -> "Table":
    table = _table("score", f"mean over {counted}", "95 % interval", "pooled", counted)
    for name, value in document["per_image"].items():
        digits = 1 if name == "hd95" else 4
        pooled = document["pooled"].get(name, document["ece_pooled"] if name == "ece" else None)
        table.add_row(
            name.replace("_", " "),
            _number(value, digits),
            _interval(document["intervals"][name], digits),
            _number(pooled, digits),
            str(document["per_image_over"][name]),
        )
    return table


def _strata_table(document: dict[str, Any]) -> "Table":
    table = _table("stratum", "IoU", "95 % interval", "Dice", "IoU under 0.1", "images")
    for name, records in document["strata"].items():
        for one in records:
            table.add_row(
                f"{name}: {one['stratum']}",
                _number(one["iou"], 4),
                _interval(one["iou_interval"], 4),
                _number(one["dice"], 4),
                f"{100 * one['share_iou_below_0.1']:.1f} %",
                str(one["n"]),
            )
    return table


def _table(first: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _interval(ends: Sequence[float | None], digits: int) -> str:
    return "" if ends[0] is None else f"{_number(ends[0], digits)} to {_number(ends[1], digits)}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _sha256(path: Path) -> str | None:
    """Of a file's content; None for weights given by name, which are known by their name."""
    from cmunext.storage import file_sha256

    return file_sha256(path) if path.is_file() else None
