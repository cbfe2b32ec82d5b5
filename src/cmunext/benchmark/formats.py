"""A table of text as Markdown and LaTeX, and one of values as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence


def markdown(
    title: str, preface: Sequence[str], header: Sequence[str], body: Iterable[Sequence[str]], notes: Sequence[str]
) -> str:
    """A page: the first column is text, the others are numbers."""
    lines = [f"# {title}", "", *preface, ""]
    lines += [_bar(header), _bar(["---"] + ["---:"] * (len(header) - 1)), *map(_bar, body), ""]
    return "\n".join([*lines, *notes, ""])


def latex(title: str, preface: Sequence[str], header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A tabular, title and preface as comments before it."""
    lines = [f"% {line}" for line in (title, *preface) if line]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\hline", _ampersands(header), "\\hline"]
    return "\n".join([*lines, *map(_ampersands, body), "\\hline", "\\end{tabular}", ""])


def comma_separated(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV, every value as `exact` writes it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([exact(cell) for cell in row] for row in rows)
    return text.getvalue()


def exact(value: object) -> str:
    """A value in full; empty where there is none (None or NaN)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def rounded(value: float | None, digits: int) -> str:
    """A number for reading; empty where there is none (None, NaN or infinite)."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Sequence[str]) -> str:
    escaped = (cell.replace("%", "\\%").replace("_", "\\_").replace("<", "$<$").replace(" x ", " $\\times$ ") for cell in cells)
    return f"{' & '.join(escaped)} \\\\"
