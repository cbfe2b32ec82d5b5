"""`cmunext compare`: which of several networks is better on the same cases, by how much, and how surely."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmunext.benchmark.compare import Comparison


def compare(
    scores: Annotated[
        list[Path], typer.Argument(help="Score tables of `cmunext evaluate --out`, two or more.", show_default=False)
    ],
    metric: Annotated[str, typer.Option(help="Column to compare: iou, dice, sensitivity, hd95, ece, ...")] = "iou",
    group: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with the columns case and group (patient, near duplicates); the intervals draw groups whole.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")] = False,
) -> None:
    """Compare score tables case by case: paired Wilcoxon tests with Holm's correction, effect sizes, intervals, wins and losses."""
    from cmunext.benchmark.compare import compare_files

    found = compare_files(scores, metric, group)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)


def _print(found: "Comparison") -> None:
    from rich.table import Table

    from cmunext.benchmark.compare import p_text
    from cmunext.cli.console import table_console

    table = Table(box=None, pad_edge=False)
    for column in (
        "a",
        "b",
        f"{found.metric} a",
        f"{found.metric} b",
        "a - b",
        "95 % interval",
        "win/tie/loss",
        "effect",
        "p (Holm)",
    ):
        table.add_column(column, justify="left" if column in ("a", "b") else "right")
    for pair in found.pairs:
        table.add_row(
            pair.a,
            pair.b,
            f"{pair.mean_a:.4f}",
            f"{pair.mean_b:.4f}",
            f"{pair.difference:+.4f}",
            f"{pair.low:+.4f} to {pair.high:+.4f}" if math.isfinite(pair.low) else "",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            f"{pair.effect:+.2f}",
            p_text(pair.p_adjusted),
        )
    for pair in found.pairs:
        typer.echo(found.sentence(pair))
    table_console(160, soft_wrap=True).print(table)
    drawn = "images" if found.drawn == found.cases else f"{found.drawn} groups"
    typer.echo(f"{found.cases} cases; intervals drawn over {drawn}")
