"""What is known of the cases beside their pixels: `cases.csv` (case, patient, pathology, ...) and names that give a class."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cmunext.errors import InputError, UsageError

TABLE = "cases.csv"
BUSBRA_TABLE = "bus_data.csv"  # what BUS-BRA brings instead
BUSBRA_PREFIX = "bus_"  # of the identifiers in it; not of the cases' names in the dataset folder
CLASS_COLUMNS = ("pathology", "class")  # the first that the table has gives the class
PATIENT_COLUMN = "patient"
ORIGINAL_COLUMN = "original"  # in a dataset of reduced copies: `metadata.image_digest` of the image that a case's was made from

_NUMBERED = re.compile(r"([^\W\d_][\w -]*?) ?\(\d+\)")  # "benign (4)", as BUSI names its images

Table = dict[str, dict[str, str]]


def read_table(path: str | os.PathLike[str], key: str = "case") -> Table:
    """Read a CSV file by its column `key`: key -> the row's other columns, all as text, in the file's order.

    Raises
    ------
    UsageError : there is no such file.
    InputError : it is not UTF-8 text, has no column `key`, or names a case twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the table {path} is not a file; give a CSV file with a column {key}")
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), skipinitialspace=True)
        columns = list(reader.fieldnames or ())
        rows = [{column: (row[column] or "").strip() for column in columns} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table {path} cannot be read as CSV ({error}); save it as UTF-8 text with commas") from error
    if key not in columns:
        raise InputError(f"the table {path} has no column {key!r}, only {', '.join(map(repr, columns)) or 'nothing'}; add it")
    table: Table = {}
    for row in rows:
        name = row.pop(key)
        if name in table:
            raise InputError(f"the table {path} names {name!r} twice; keep one row a case")
        table[name] = row
    return table


def table_content(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str]) -> bytes:
    """A table as CSV: the column `case`, then `columns`; UTF-8, lines ended by LF."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", *columns))
    writer.writerows((name, *(row[column] for column in columns)) for name, row in rows.items())
    return text.getvalue().encode()


def dataset_table(root: Path) -> Table:
    """`cases.csv` of a dataset folder, else BUS-BRA's table in the same form, else an empty table. Raises InputError."""
    if (root / TABLE).is_file():
        return read_table(root / TABLE)
    path = root / BUSBRA_TABLE
    table: Table = {}
    for name, row in read_table(path, "ID").items() if path.is_file() else ():
        if missing := [column for column in ("Case", "Pathology") if not row.get(column)]:
            raise InputError(f"the table {path} gives no {missing[0]} for {name!r}; use the file as it comes with BUS-BRA")
        table[name.removeprefix(BUSBRA_PREFIX)] = {PATIENT_COLUMN: row["Case"], CLASS_COLUMNS[0]: row["Pathology"]}
    return table


def classes_of(names: Iterable[str], table: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Case -> class: from the table's column `pathology` or `class`, else from a name like "benign (4)", else ""."""
    return {name: class_of(name, table.get(name, {})) for name in names}


def class_of(name: str, row: Mapping[str, str]) -> str:
    """The class of one case, given its row of the table (empty where it has none); "" where nothing tells."""
    for column in CLASS_COLUMNS:
        if row.get(column):
            return row[column]
    numbered = _NUMBERED.fullmatch(name)
    return numbered.group(1) if numbered else ""
